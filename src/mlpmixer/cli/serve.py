"""The command that answers over HTTP: serve."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import Flag
from mlpmixer.cli.options import Computing, Sizes
from mlpmixer.hardware import cores
from mlpmixer.inference.exported import export_at
from mlpmixer.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer over HTTP with the model in RUN: a page at /, a description at /docs, POST /predict, /features, /evidence.

    SIGTERM or Ctrl-C stops it when what was accepted is answered. What each limit is for: docs/serving.md.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, a name of `mlpmixer list weights`, or an export
    (file or bundle)."""
    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0: every one this machine has."""
    port: int = 8000
    """0: a free one."""
    workers: int = 1
    """Processes, each with its own copy of the model; one that dies is replaced."""
    streams: int = 0
    """Batches that are computed at the same time, on --threads each or on their share of the cores. 0: two, where one
    worker has the cores of a CPU to itself. One: an image that comes alone has its answer sooner, many have theirs
    later (docs/serving.md)."""
    token_file: Annotated[str, arg(metavar="FILE")] = ""
    """Clients must send the token in FILE: Authorization: Bearer TOKEN."""
    behind: Annotated[str, arg(metavar="ADDRESS,...")] = ""
    """Addresses of the proxies in front of it, whose X-Forwarded-For is believed."""
    log: Flag = False
    """Print a line for each request."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    settings: Annotated[Settings, arg(name="")] = field(default_factory=Settings)
    computing: Annotated[Computing, arg(name="")] = field(default_factory=Computing)
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        if self.streams < 0:
            raise ValueError(f"--streams must be at least 0, got {self.streams}")
        self.token()
        try:
            from mlpmixer.serve.server import listen, run
        except ModuleNotFoundError as e:
            raise ValueError(
                f'serving needs fastapi, uvicorn and more (no {e.name} here): pip install "mlpmixer[serve]"'
            ) from None
        with listen(self.host, self.port) as sock:
            host, port = sock.getsockname()[:2]
            where = f"http://{f'[{host}]' if ':' in host else host}:{port}/ (for programs: /docs); Ctrl-C stops it"
            make = self.app
            if self.workers == 1:  # what is wrong with the model is said by this process
                app = self.app()
                make = lambda: app  # noqa: E731
                print(f"{self.run} answers at {where}", flush=True)
            else:
                print(f"{self.workers} workers load {self.run}, then answer at {where}", flush=True)
            return run(make, sock, self.settings, workers=self.workers, trusted=self.behind, log_requests=self.log)

    def app(self) -> "FastAPI":
        """The service, in the process that runs it."""
        from mlpmixer.serve.app import make_app

        warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata: no client fills the log
        classifier = self.sizes.load(self.run, self.device, self.computing, self.streams_of_a_worker())
        return make_app(classifier, self.settings, token=self.token(), name=Path(self.run).name or self.run)

    def streams_of_a_worker(self) -> int:
        """As asked for, or else what is best."""
        if self.streams:
            return self.streams
        if self.workers > 1 or self.computing.threads or cores() == 1:
            return 1
        if not export_at(self.run):
            from mlpmixer.hardware import choose_device

            if choose_device(self.device).type != "cpu":
                return 1
        return 2

    def token(self) -> str:
        if not self.token_file:
            return ""
        token = Path(self.token_file).read_text(encoding="utf-8").strip()
        if not (token.isascii() and token.isprintable() and len(token.split()) == 1):
            raise ValueError(f"{self.token_file} holds no token: expected one word of ASCII characters")
        return token
