"""Build the sdist and the wheel, and try the wheel as a stranger would: in a new environment, outside the checkout.

`make dist` calls it. It stops at the first problem, and writes dist/ when there is none.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
PICTURE, SHOWS = ROOT / "examples" / "digit.png", "5"
NEVER = re.compile(r"(^|/)(__pycache__|runs|\.[a-z]+_cache|\.hypothesis|\.venv)(/|$)|\.pyc$")


@contextmanager
def step(what: str) -> Iterator[None]:
    print(f"== {what}", flush=True)
    start = time.monotonic()
    yield
    print(f"   ok, {time.monotonic() - start:.0f} s", flush=True)


def require(condition: object, problem: str) -> None:
    if not condition:
        sys.exit(f"dist: {problem}")


def run(*command: object, cwd: Path, shown: bool = True) -> str:
    """Standard output of a program, which must succeed. Nothing of this checkout is on its path."""
    words = list(map(str, command))
    if shown:
        print(f"   $ {' '.join([Path(words[0]).name, *words[1:]])}", flush=True)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    require(done.returncode == 0, f"{words[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def new_environment(folder: Path, *packages: object) -> Path:
    """The programs of an environment with these packages and no other."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "-qq", "-c", CONSTRAINTS, *packages, cwd=folder)
    return programs


def build(scratch: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    programs = new_environment(scratch / "build", "build")
    out = scratch / "dist"
    run(programs / "python", "-m", "build", "--outdir", out, ROOT, cwd=scratch)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """Everything under version control that belongs into them, and nothing else."""
    tracked = run("git", "ls-files", cwd=ROOT, shown=False).splitlines()
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition("/")[2] for name in archive.namelist() if ".dist-info/" in name}
    source = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    for what, missing in (
        ("the wheel lacks", source - installed),
        ("the wheel has what is not under version control", installed - source),
        ("the sdist lacks", {name for name in tracked if name.startswith(("src/", "tests/", "docs/"))} - packed),
        ("the sdist has what is not under version control", packed - {*tracked, "PKG-INFO"}),
        ("caches or runs in it", {name for name in packed | installed if NEVER.search(name)}),
        ("the wheel lacks", {"METADATA", "entry_points.txt", "licenses/LICENSE"} - about),
    ):
        require(not missing, f"{what}: {', '.join(sorted(missing)[:10])}")
    print(f"   {len(installed)} files in the wheel, {len(packed)} in the sdist")


def wait_until_ready(address: str) -> None:
    for _ in range(600):
        with suppress(OSError), urllib.request.urlopen(f"{address}ready", timeout=60):
            return
        time.sleep(0.1)
    sys.exit(f"dist: {address} is not ready after a minute")


def serve_once(programs: Path, folder: Path) -> str:
    """The answer of `mlpmixer serve digits` to one picture; it is stopped afterwards."""
    service = subprocess.Popen(
        [programs / "mlpmixer", "serve", "digits", "--port", "0"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        assert service.stdout
        line = service.stdout.readline()
        found = re.search(r"http://\S+/", line)
        require(found, f"mlpmixer serve digits said {line!r} instead of its address")
        assert found
        wait_until_ready(found[0])
        headers = {"content-type": "image/png"}
        request = urllib.request.Request(f"{found[0]}predict", (folder / PICTURE.name).read_bytes(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            label = json.load(answer)["results"][0]["label"]
    finally:
        service.terminate()
        service.wait(60)
    require(os.name == "nt" or service.returncode == 0, f"the service ended with {service.returncode}")
    return str(label)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with step("build the sdist, and the wheel from it"):
            sdist, wheel = build(scratch)
        with step("contents"):
            check_contents(sdist, wheel)
        with step("install the wheel in a new environment"):
            programs, folder = new_environment(scratch / "new", f"{wheel}[serve]"), scratch / "elsewhere"
            folder.mkdir()
            shutil.copy(PICTURE, folder)
        program = programs / "mlpmixer"
        with step("version"):
            said, version = run(program, "--version", cwd=folder).strip(), wheel.name.split("-")[1]
            require(said == f"mlpmixer {version}", f"mlpmixer --version says {said!r} in the wheel of {version}")
        with step("classify a picture"):
            lines = run(program, "predict", "digits", PICTURE.name, cwd=folder).splitlines()
            require(lines[1].split()[-1] == SHOWS, f"expected a {SHOWS} in {PICTURE.name}, got: {lines}")
        with step("train"):
            run(program, "train", "digits", "--epochs", 2, "--out", "run", "--quiet", cwd=folder)
            run(program, "evaluate", "run", cwd=folder)
        with step("serve"):
            require((label := serve_once(programs, folder)) == SHOWS, f"expected a {SHOWS}, the service said {label}")
        (ROOT / "dist").mkdir(exist_ok=True)
        for file in (sdist, wheel):
            shutil.copy(file, ROOT / "dist")
            print(f"dist/{file.name}  {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
