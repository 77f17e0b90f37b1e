"""Programs in a Python of their own."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"
OF_ONNXRUNTIME = ("google", "flatbuffers", "packaging")  # what it depends on
OF_THE_COMMAND = ("mlpmixer",)
ALONE = """
import sys
from importlib.abc import MetaPathFinder
allowed = {"numpy", "PIL", "onnxruntime", *%r}
class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed | set(sys.stdlib_module_names):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def python(code: str, *, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Python with this package."""
    env = os.environ | {"PYTHONPATH": str(SOURCES)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env)


def alone(code: str, packages: tuple[str, ...] = (), *, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Python with nothing but its standard library, the three packages of a bundle, and these."""
    return python(ALONE % ((*OF_ONNXRUNTIME, *packages),) + code, cwd=cwd)


class Forks:
    """Runs code in new processes that have torch and all that training imports already, which takes longest by far:
    they are forked from one process, which has trained a step and has no threads."""

    SERVER = """
        import io, json, os, sys, tempfile, traceback
        from mlpmixer.models.configs import MixerConfig
        from mlpmixer.training.recipe import Recipe, Run
        from mlpmixer.training.run import train

        tiny = MixerConfig(image_size=8, patch_size=4, num_blocks=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)
        with tempfile.TemporaryDirectory() as folder:
            train(Recipe(name="digits", model=tiny, run=Run(steps=1, batch_size=2, device="cpu")), out=folder + "/run")
        for line in sys.stdin:
            job, code = json.loads(line), 0
            if pid := os.fork():
                print(job["folder"], os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
                continue
            for fd, name in enumerate(("out", "err"), start=1):
                os.dup2(os.open(os.path.join(job["folder"], name), os.O_WRONLY), fd)
            sys.argv, sys.stdin = ["-c", *job["args"]], io.StringIO(job["input"])
            try:
                exec(job["code"], {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __call__(self, code: str, *args: object, input: str = "") -> "subprocess.CompletedProcess[str]":
        """As `python -c code args`, with this on its standard input."""
        if self._server is None or self._server.poll() is not None:
            env = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-W", "error", "-c", textwrap.dedent(self.SERVER)]
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self._server.stdin and self._server.stdout
        with tempfile.TemporaryDirectory() as folder:
            for name in ("out", "err"):
                (Path(folder) / name).touch()
            job = {"code": textwrap.dedent(code), "args": [str(arg) for arg in args], "input": input, "folder": folder}
            print(json.dumps(job), file=self._server.stdin, flush=True)
            named = ""
            while named != folder:  # one who was interrupted has left his answer
                answer = self._server.stdout.readline()
                assert answer, "the process that forks has ended"
                named, _, status = answer.rpartition(" ")
            out, err = ((Path(folder) / name).read_text(encoding="utf-8") for name in ("out", "err"))
        return subprocess.CompletedProcess(["-c", *job["args"]], int(status), out, err)

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
