"""A file comes once, whole or not at all, from servers that serve well and from servers that do not. All of them run on
loopback."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlpmixer import cli, download
from mlpmixer.cli import printing, progress
from mlpmixer.download import FetchError, Retry, cache_path, fetch, read_image
from mlpmixer.models.architecture import create_model
from mlpmixer.weights.formats import write_foreign
from mlpmixer.weights.published import NUM_CLASSES, WEIGHTS, Weights

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
QUICK = Retry(timeout_s=0.3, backoff_s=0.0)
ONCE = Retry(timeout_s=0.3, backoff_s=0.0, attempts=0)


class Server(ThreadingHTTPServer):
    """Answers GET after GET as `plan` says, then well.

    "404", "500"...: that status; "loop": a redirect to the same address; "half": breaks off in the middle; "stall":
    sends half, then nothing; "no range": sends everything, whatever was asked for; "other part": a range, but not the
    one that was asked for; "careless": the range that was asked for, be it of the same file or not; "claims +N",
    "claims -N": a Content-Length that is wrong by N; "no length": no Content-Length at all.
    """

    daemon_threads = True

    def __init__(self, *plan: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.content, self.version = list(plan), CONTENT, {"ETag": '"one"'}
        self.requests: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/B_16.npz"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client went away, as it should


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s, asked = self.server, self.headers
        s.requests.append(dict(asked.items()))
        s.paths.append(self.path)
        what = s.plan.pop(0) if s.plan else "well"
        if what == "loop":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        if what.isdigit():
            self.send_error(int(what))
            return
        start = int(asked["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in asked else 0
        if what == "no range" or (what != "careless" and asked.get("If-Range") not in s.version.values()):
            start = 0
        if start >= len(s.content):
            self.send_error(416)
            return
        part = s.content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start - (what == "other part")
            self.send_header("Content-Range", f"bytes {first}-{len(s.content) - 1}/{len(s.content)}")
        for name, value in s.version.items():
            self.send_header(name, value)
        if what != "no length":
            self.send_header(
                "Content-Length",
                str(len(part) + (int(what.removeprefix("claims ")) if what.startswith("claims") else 0)),
            )
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if what in ("half", "stall") else part)
        if what == "stall":
            s.released.wait(10)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def loopback_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started: list[tuple[Server, threading.Thread]] = []

    def start(*plan: str) -> Server:
        server = Server(*plan)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


Serve = Callable[..., Server]


def only_file(cache: Path) -> Path:
    """The one file under the cache: nothing is left beside it, hidden or not, but its digest."""
    (file,) = (p for p in cache.rglob("*") if p.is_file() and p.suffix != ".sha256")
    assert file.with_name(f".{file.name}.sha256").read_text() == hashlib.sha256(file.read_bytes()).hexdigest()
    return file


# --- when all is well ---------------------------------------------------------------------------------------------


def test_downloads_once_into_the_cache(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    events: list[dict[str, Any]] = []
    path = fetch(server.url, num_bytes=len(CONTENT), cache_dir=tmp_path, report=events.append)
    assert path == cache_path(server.url, tmp_path) == only_file(tmp_path)
    assert path.read_bytes() == CONTENT
    assert path.name == "B_16.npz" and path.parent.name == "models"
    assert fetch(server.url, num_bytes=len(CONTENT), cache_dir=tmp_path, report=events.append) == path
    assert len(server.requests) == 1 and "Range" not in server.requests[0]
    done = [e["done_bytes"] for e in events]
    assert done == sorted(done) and done[0] == 0 and done[-1] == len(CONTENT)
    assert {(e["kind"], e["url"], e["total_bytes"]) for e in events} == {("fetch", server.url, len(CONTENT))}


def test_a_cached_file_that_changes_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    path = fetch(server.url, cache_dir=tmp_path)
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(
        ValueError, match=r"has changed since it was first used .* remove \.B_16\.npz\.sha256 beside it"
    ):
        fetch(server.url, cache_dir=tmp_path)
    path.unlink()
    assert fetch(server.url, cache_dir=tmp_path).read_bytes() == CONTENT
    path.with_name(f".{path.name}.sha256").unlink()
    path.write_bytes(b"another, put here by hand")
    assert fetch(server.url, cache_dir=tmp_path) == path == only_file(tmp_path)
    path.write_bytes(b"another, put here by h\0nd")
    with pytest.raises(ValueError, match="has changed"):
        fetch(server.url, cache_dir=tmp_path)


def test_the_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    expected = tmp_path / ".cache" / "mlpmixer"
    assert cache_path("https://example.org/a/b.npz") == expected / "example.org" / "a" / "b.npz"
    assert cache_path("hf:timm/mixer_b16_224.goog_in21k/model.safetensors") == expected.joinpath(
        "hf", "timm", "mixer_b16_224.goog_in21k", "model.safetensors"
    )


def test_concurrent_calls_share_one_download(serve: Serve, tmp_path: Path) -> None:
    server = serve("half")
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch(server.url, cache_dir=tmp_path, retry=QUICK), range(6)))
    assert {p.read_bytes() for p in paths} == {CONTENT}
    assert len(server.requests) == 2, "one that broke, one that went on"


# --- when the connection breaks -----------------------------------------------------------------------------------


def test_resumes_a_broken_download(serve: Serve, tmp_path: Path) -> None:
    server = serve("half")
    path = fetch(server.url, num_bytes=len(CONTENT), cache_dir=tmp_path, retry=QUICK)
    assert path.read_bytes() == CONTENT and only_file(tmp_path) == path
    first, second = server.requests
    assert "Range" not in first
    assert (second["Range"], second["If-Range"]) == (f"bytes={len(CONTENT) // 2}-", '"one"')


def test_next_call_resumes(serve: Serve, tmp_path: Path) -> None:
    server = serve("half")
    with pytest.raises(ValueError, match=r"ended after 51,200 of 102,400 bytes"):
        fetch(server.url, cache_dir=tmp_path, retry=ONCE)
    assert not cache_path(server.url, tmp_path).exists(), "half a file never bears the name of the whole"
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=51200-"


def test_progress_resets_the_attempts(serve: Serve, tmp_path: Path) -> None:
    server = serve(*["half"] * 10)
    assert fetch(server.url, cache_dir=tmp_path, retry=dataclasses.replace(QUICK, attempts=1)).read_bytes() == CONTENT
    assert len(server.requests) == 11


def test_server_without_ranges_restarts(serve: Serve, tmp_path: Path) -> None:
    server = serve("half", "no range")
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT
    assert "Range" in server.requests[1]


def test_gives_up_without_ranges(serve: Serve, tmp_path: Path) -> None:
    server = serve(*["half"] * 9)
    server.version = {}
    with pytest.raises(ValueError, match="ended after"):
        fetch(server.url, cache_dir=tmp_path, retry=QUICK)
    assert len(server.requests) == 4 and not any("Range" in r for r in server.requests), (
        "nothing says that it is still the same file"
    )


@pytest.mark.parametrize(
    "version", [{"ETag": '"two"'}, {"ETag": 'W/"one"'}, {"Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}, {}]
)
def test_changed_file_is_downloaded_again(version: dict[str, str], serve: Serve, tmp_path: Path) -> None:
    server = serve("half")
    with pytest.raises(ValueError, match="ended after"):
        fetch(server.url, cache_dir=tmp_path, retry=ONCE)
    server.content, server.version = CONTENT[::-1], version
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT[::-1]


def test_careless_server_does_not_mix_files(serve: Serve, tmp_path: Path) -> None:
    server = serve("half", "careless")
    with pytest.raises(ValueError, match="ended after"):
        fetch(server.url, cache_dir=tmp_path, retry=ONCE)
    server.content, server.version = CONTENT[::-1], {"ETag": '"two"'}
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT[::-1]
    assert [("Range" in r) for r in server.requests] == [False, True, False]


def test_last_modified_serves_as_version(serve: Serve, tmp_path: Path) -> None:
    server = serve("half")
    server.version = {"ETag": 'W/"weak"', "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT
    assert server.requests[1]["If-Range"] == "Sat, 21 Nov 2026 10:00:00 GMT"


def test_discards_a_part_not_asked_for(serve: Serve, tmp_path: Path) -> None:
    server = serve("half", "other part")
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT
    assert "Range" not in server.requests[2]


def test_file_shorter_than_its_part(serve: Serve, tmp_path: Path) -> None:
    server = serve("half")
    with pytest.raises(ValueError, match="ended after"):
        fetch(server.url, cache_dir=tmp_path, retry=ONCE)
    server.content = CONTENT[:1000]  # and the ETag lies
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT[:1000]


def test_stalled_connection_resumes(serve: Serve, tmp_path: Path) -> None:
    server = serve("stall")
    start = time.monotonic()
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT
    assert time.monotonic() - start < 5
    assert server.requests[1]["Range"] == "bytes=51200-", "what came before the stall is kept"


def test_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ValueError, match=r"silent for 0\.1 s"):
        fetch(
            f"http://127.0.0.1:{silent.getsockname()[1]}/x",
            cache_dir=tmp_path,
            retry=Retry(timeout_s=0.1, attempts=2, backoff_s=0),
        )


# --- when the server lies or refuses ------------------------------------------------------------------------------


def test_short_answer_is_not_the_file(serve: Serve, tmp_path: Path) -> None:
    server = serve(*["claims +10"] * 9)
    with pytest.raises(ValueError, match=r"ended after 102,400 of 102,410 bytes|not longer than"):
        fetch(server.url, cache_dir=tmp_path, retry=QUICK)
    assert not cache_path(server.url, tmp_path).exists()
    assert len(server.requests) < 9


@pytest.mark.parametrize("plan", ["well", "claims -10", "claims +10"])
def test_unexpected_size_is_refused_unread(plan: str, serve: Serve, tmp_path: Path) -> None:
    server = serve(plan)
    with pytest.raises(ValueError, match=r"has a file of 102,\d{3} bytes there, expected 99,999") as e:
        fetch(server.url, num_bytes=99_999, cache_dir=tmp_path, retry=QUICK)
    assert str(cache_path(server.url, tmp_path)) in str(e.value)
    assert len(server.requests) == 1
    assert not any(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())


def test_stops_at_the_expected_size(serve: Serve, tmp_path: Path) -> None:
    server = serve("no length")
    with pytest.raises(ValueError, match="sends more than the 50,000 bytes"):
        fetch(server.url, num_bytes=50_000, cache_dir=tmp_path, retry=QUICK)
    assert not any(p.stat().st_size > 100 for p in tmp_path.rglob("*") if p.is_file())


def test_expected_size_detects_truncation(serve: Serve, tmp_path: Path) -> None:
    server = serve("no length")
    server.content = CONTENT[:-1]
    with pytest.raises(ValueError, match="ended after 102,399 of 102,400 bytes"):
        fetch(server.url, num_bytes=len(CONTENT), cache_dir=tmp_path, retry=ONCE)


@pytest.mark.parametrize("status", ["404", "403"])
def test_refusal_is_not_retried(status: str, serve: Serve, tmp_path: Path) -> None:
    server = serve(status)
    with pytest.raises(ValueError, match=f"answers {status}"):
        fetch(server.url, cache_dir=tmp_path, retry=QUICK)
    assert len(server.requests) == 1


def test_letters_of_any_script_are_encoded(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    fetch(f"{server.url}/Äpfel 玻%20.tar?a=b c&d=%2F", cache_dir=tmp_path, retry=QUICK)
    assert server.paths == ["/models/B_16.npz/%C3%84pfel%20%E7%8E%BB%20.tar?a=b%20c&d=%2F"]


def test_a_file_larger_than_the_disk_is_refused_unread(serve: Serve, tmp_path: Path) -> None:
    server = serve(f"claims +{10**17}")
    with pytest.raises(ValueError, match=r"100,000,000,000,102,400 bytes are still to come, but the disk of .* free"):
        fetch(server.url, cache_dir=tmp_path, retry=QUICK)
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".part"]


def test_a_refusal_of_several_lines_is_told_in_one(serve: Serve, tmp_path: Path) -> None:
    server = serve(*["loop"] * 20)
    with pytest.raises(ValueError, match="infinite loop") as e:
        fetch(server.url, cache_dir=tmp_path, retry=QUICK)
    assert "\n" not in str(e.value)


def test_server_errors_are_retried(serve: Serve, tmp_path: Path) -> None:
    server = serve("500", "429")
    assert fetch(server.url, cache_dir=tmp_path, retry=QUICK).read_bytes() == CONTENT
    broken = serve(*["503"] * 9)
    with pytest.raises(ValueError, match="answers 503"):
        fetch(broken.url, cache_dir=tmp_path, retry=QUICK)
    assert len(broken.requests) == 3


# --- without a network --------------------------------------------------------------------------------------------


def test_offline_error_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/B_16.npz"
    with pytest.raises(ValueError) as e:
        fetch(url, num_bytes=7, cache_dir=tmp_path, retry=QUICK)
    path = cache_path(url, tmp_path)
    assert f"download {url} (7 bytes) elsewhere and put it at {path}" in str(e.value)
    path.write_bytes(b"by hand")
    assert fetch(url, num_bytes=7, cache_dir=tmp_path).read_bytes() == b"by hand"


def test_wrong_size_of_a_cached_file(tmp_path: Path) -> None:
    path = cache_path("https://example.org/x.npz", tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut o")
    with pytest.raises(ValueError, match=r"x\.npz has 5 bytes, but .* has 7: remove it"):
        fetch("https://example.org/x.npz", num_bytes=7, cache_dir=tmp_path)
    assert path.read_bytes() == b"cut o", "what a user put there is the user's to remove"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "B_16.npz",
            "file:///etc/passwd",
            "ftp://example.org/x",
            "https://example.org",
            "https:///x",
            "https://example.org/a/../../x",
        ),
        *("hf:owner/name", "hf:owner/../x", "hf:/name/x", "hf:owner/name/", "hf:owner/name/a b"),
    ],
)
def test_wrong_addresses(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the address of a file"):
        fetch(url, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


# --- the Hub ------------------------------------------------------------------------------------------------------


def test_hub_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def hf_hub_download(repo: str, file: str, *, local_dir: Path, local_files_only: bool) -> str:
        assert not local_files_only
        asked.append((repo, file))
        target = local_dir / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"weights")
        return str(target)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    for url in ("hf:timm/mixer/model.safetensors", "hf:timm/mixer/sub/model.safetensors"):
        for _ in range(2):
            assert fetch(url, num_bytes=7, cache_dir=tmp_path) == cache_path(url, tmp_path)
    assert asked == [("timm/mixer", "model.safetensors"), ("timm/mixer", "sub/model.safetensors")], "each once"


def test_unreachable_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no route to host\nand more")

    def nothing_here(*args: Any, local_files_only: bool, **kwargs: Any) -> str:
        assert local_files_only, "without a network there is nothing to try again"
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing in the cache")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing_here)
    url = "hf:timm/mixer/model.safetensors"
    with pytest.raises(ValueError, match=r"no route to host\. Without") as e:
        fetch(url, cache_dir=tmp_path)
    assert "https://huggingface.co/timm/mixer/resolve/main/model.safetensors" in str(e.value)
    assert str(cache_path(url, tmp_path)) in str(e.value)


def test_missing_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install \"mlpmixer\[hf\]\".*put it at"):
        fetch("hf:timm/mixer/model.safetensors", cache_dir=tmp_path)


def test_hub_refusal_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def refused(*args: Any, local_files_only: bool = False, **kwargs: Any) -> str:
        assert not local_files_only
        raise HfHubHTTPError(
            "401 Client Error", response=httpx2.Response(401, request=httpx2.Request("HEAD", "https://huggingface.co"))
        )

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refused)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(ValueError, match="401 Client Error"):
        fetch("hf:timm/mixer/model.safetensors", cache_dir=tmp_path)


def test_offline_prints_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-m", "mlpmixer", "summary", "hf:ada/digits"],
        env=os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith("mlpmixer: hf:ada/digits could not be fetched: ")
        and "give the path of that file instead" in line
    )


# --- what the command line shows ----------------------------------------------------------------------------------


@pytest.fixture
def published(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The weights Pico/2:test; the cache is empty."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    model = create_model("Pico/2", num_classes=NUM_CLASSES["imagenet1k"])
    write_foreign(tmp_path / "w.npz", model.cfg, model.state_dict(), "official")
    server = serve()
    server.content = (tmp_path / "w.npz").read_bytes()
    known = {
        "form": "official",
        "classes": "imagenet1k",
        "preprocess": "bv_resmall_crop",
        "top1": None,
        "source": "",
        "licence": "",
    }
    monkeypatch.setitem(
        WEIGHTS,
        "Pico/2:test",
        Weights(model="Pico/2", url=server.url, num_bytes=len(server.content), **known),  # type: ignore[arg-type]
    )
    return server


def picture(folder: Path) -> str:
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    return str(folder / "red.png")


def command(what: str, tmp_path: Path) -> list[str]:
    return {
        "convert": ["convert", "Pico/2:test", str(tmp_path / "out.safetensors")],
        "predict": ["predict", "Pico/2:test", picture(tmp_path), "--format", "json"],
        "train": [
            "train",
            "digits",
            "--init",
            "Pico/2:test",
            "--steps",
            "1",
            "--no-test",
            "--out",
            str(tmp_path / "run"),
        ],
    }[what]


@pytest.mark.parametrize("what", ["convert", "predict", "train"])
def test_download_is_announced_once(
    what: str, published: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(what, tmp_path)) == 0
    out, err = capsys.readouterr()
    assert err == f"mlpmixer: fetching {published.url}, {len(published.content) / 1e6:.1f} MB\n" and "fetch" not in out
    assert what != "predict" or json.loads(out)
    assert cli.main(command("convert", tmp_path)) == 0
    assert capsys.readouterr().err == "" and len(published.requests) == 1


def test_download_events_in_json_and_quiet(
    published: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command("train", tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    fetched = [e for e in events if e["kind"] == "fetch"]
    assert err == "" and events[: len(fetched)] == fetched and events[len(fetched)]["kind"] == "start"
    assert (fetched[-1]["done_bytes"], fetched[-1]["total_bytes"]) == (len(published.content), len(published.content))
    cache_path(published.url).unlink()
    assert (
        cli.main(
            [
                "train",
                "digits",
                "--init",
                "Pico/2:test",
                "--steps",
                "1",
                "--no-test",
                "--out",
                str(tmp_path / "q"),
                "--quiet",
            ]
        )
        == 0
    )
    assert capsys.readouterr().err == "" and len(published.requests) == 2


def test_download_bar_on_a_terminal(
    published: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(command("train", tmp_path)) == 0
    out, err = capsys.readouterr()
    assert "\rB_16.npz  0.0 MB of 0.8 MB" in err and "B_16.npz  0.8 MB of 0.8 MB" in err and "1 step" in out
    assert re.search(r"\r +\r$", err), "the line is cleared"


def test_long_download_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress.shown(every_s=0)
    for done in (200_000_000, 700_000_000, 700_000_000):
        report(
            {"kind": "fetch", "url": "https://example.org/H_14.npz", "done_bytes": done, "total_bytes": 1_700_000_000}
        )
    start, later, stalled = capsys.readouterr().err.splitlines()
    assert start == "mlpmixer: fetching https://example.org/H_14.npz, 1,700.0 MB, 200.0 MB already here"
    assert re.fullmatch(r"mlpmixer: fetched  700.0 MB of 1,700.0 MB  [\d.,]+ MB/s  \d+ s left", later), later
    assert stalled.startswith("mlpmixer: fetched  700.0 MB")
    report({"kind": "fetch", "url": "https://example.org/other", "done_bytes": 0, "total_bytes": 0})
    report({"kind": "fetch", "url": "https://example.org/other", "done_bytes": 5_000_000, "total_bytes": 0})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "mlpmixer: fetching https://example.org/other" and second.startswith("mlpmixer: fetched  5.0 MB  ")


def test_ctrl_c_ends_a_download_at_once(published: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(event: printing.Event) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress, "shown", lambda: interrupted)
    assert cli.main(command("train", tmp_path)) == 130
    assert not (tmp_path / "run").exists() and not cache_path(published.url).exists()


# ---- one image, kept nowhere


def test_an_image_comes_whole_or_says_why_not(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    for kind in ("image/png", "application/octet-stream", "IMAGE/JPEG; x=y"):
        server.version = {"Content-Type": kind}
        assert read_image(server.url) == CONTENT
    server.version = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(FetchError, match="the server answers with 'text/html', expected an image"):
        read_image(server.url)
    server.version = {}
    for plan, says in (("404", "answers 404"), ("stall", "was silent for 0.3 s"), ("claims +5", "connection ended")):
        server.plan = [plan]
        with pytest.raises(FetchError, match=f"could not be fetched: .*{says}"):
            read_image(server.url, ONCE)
    server.plan = ["half"]
    assert read_image(server.url, QUICK) == CONTENT  # the second time
    late = iter((0.0, 61.0))
    monkeypatch.setattr(download.time, "monotonic", lambda: next(late))
    with pytest.raises(FetchError, match="has not sent all of it within 60 s"):
        read_image(server.url)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "MAX_IMAGE_BYTES", len(CONTENT) - 1)
    for plan in ("well", "no length"):
        server.plan = [plan]
        with pytest.raises(FetchError, match="more than the limit of 102,399 bytes"):
            read_image(server.url)
