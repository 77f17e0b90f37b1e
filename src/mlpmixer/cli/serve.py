"""mlpmixer serve."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlpmixer.cli.arguments import Arg
from mlpmixer.cli.options import ModelCommand
from mlpmixer.hardware import cores
from mlpmixer.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI


MOST_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class Serve(ModelCommand):
    """Serve a model over HTTP.

    The service has a page at /, the API's description at /docs, and POST /predict, /features and /evidence. SIGTERM or
    Ctrl-C stops it once all accepted requests are answered. docs/how-to/serving.md explains the limits.
    """

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: all of this machine."""
    port: int = 8000
    """Port to listen on. 0: a free one."""
    workers: int = 1
    """Processes, each with its own copy of the model. One that dies is replaced."""
    streams: int = 0
    """Batches computed at the same time, each on --threads or its share of the cores. 0: two if a single worker
    computes on the CPU, else one. One answers a single image sooner, two answer many (docs/how-to/serving.md)."""
    token_file: Annotated[str, Arg("FILE")] = ""
    """Require the token in FILE from clients: Authorization: Bearer TOKEN."""
    allow_host: Annotated[str, Arg("NAME,...")] = ""
    """Host names that requests may address, besides localhost. By default, a service on the loopback address without a
    token answers to localhost only, and any other service to all names (docs/how-to/serving.md)."""
    behind: Annotated[str, Arg("ADDRESS,...")] = ""
    """Trusted proxies: their X-Forwarded-For header is used."""
    samples: Annotated[str, Arg("FOLDER")] = ""
    """Folder of images to try on the page, the first 12 by name. Everybody who may open the page sees them, without
    their file names and metadata."""
    log: bool = False
    """Print a line for each request."""
    settings: Settings = field(default_factory=Settings)

    def __call__(self) -> int:
        if not 1 <= self.workers <= MOST_WORKERS:
            raise ValueError(f"--workers must be 1 to {MOST_WORKERS}, got {self.workers}")
        if self.streams < 0:
            raise ValueError(f"--streams must be at least 0, got {self.streams}")
        self.token()
        if self.samples and not Path(self.samples).is_dir():
            raise ValueError(f"--samples {self.samples}: expected a folder of images")
        try:
            from mlpmixer.serve.server import listen, run
        except ModuleNotFoundError as e:
            raise ValueError(
                f'serving needs fastapi, uvicorn and more ({e.name} is missing): pip install "mlpmixer[serve]"'
            ) from None
        with listen(self.host, self.port) as sock:
            host, port = sock.getsockname()[:2]
            where = f"http://{f'[{host}]' if ':' in host else host}:{port}/ (for programs: /docs); Ctrl-C stops it"
            hosts = self.hosts(host)
            make: Callable[[], FastAPI] = partial(self.app, hosts)
            if self.workers == 1:  # this process reports what is wrong with the model
                app = make()
                make = lambda: app  # noqa: E731
                print(f"serving {self.run} at {where}", flush=True)
            else:
                print(f"{self.workers} workers load {self.run}, then serve it at {where}", flush=True)
            return run(make, sock, self.settings, workers=self.workers, trusted=self.behind, log_requests=self.log)

    def hosts(self, address: str) -> frozenset[str] | None:
        """Names that requests may be for, of a service that listens on this address; None: any."""
        allowed = {name.strip().lower() for name in self.allow_host.split(",") if name.strip()}
        for name in allowed:
            if "/" in name or name.count(":") == 1:
                raise ValueError(
                    f"--allow-host takes names without http:// and port, such as mixer.example, got {name}"
                )
        if not allowed and (self.token_file or not ip_address(address.partition("%")[0]).is_loopback):
            return None
        return frozenset({"localhost", "127.0.0.1", "::1", address, self.host.lower(), *allowed})

    def app(self, hosts: frozenset[str] | None = None) -> "FastAPI":
        """The service, in the process that runs it."""
        from mlpmixer.serve.app import make_app
        from mlpmixer.serve.page import read_samples
        from mlpmixer.weights.privacy import without_folders

        warnings.filterwarnings("ignore", module="PIL")  # about damaged metadata: a client must not fill the log
        classifier = self.load(self.streams_of_a_worker())
        samples = read_samples(self.samples) if self.samples else ()
        name = without_folders(self.run)
        return make_app(classifier, self.settings, token=self.token(), name=name, hosts=hosts, samples=samples)

    def streams_of_a_worker(self) -> int:
        """--streams, or the best number for this machine."""
        if self.streams:
            return self.streams
        if self.workers > 1 or self.runtime.threads or cores() == 1:
            return 1
        from mlpmixer.inference.exported import export_at

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
            raise ValueError(f"{self.token_file} does not hold a token: expected one word of ASCII characters")
        return token
