"""The page in a real browser: choosing and drawing images, errors, the token and the API reference."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.chromium import Chromium
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")
pytest.importorskip("python_multipart", reason="the extra serve is not installed")

import uvicorn

from mlpmixer import load
from mlpmixer.serve.app import make_app
from mlpmixer.serve.page import read_samples
from mlpmixer.serve.server import listen
from mlpmixer.serve.settings import Settings

pytestmark = pytest.mark.browser

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an app in a thread; gives its address."""
    running: list[tuple[Any, threading.Thread]] = []

    def start(app: Any) -> str:
        sock = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        running.append((server, thread))
        while not server.started:  # until then a connection is refused
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{sock.getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def digits() -> Any:
    """A tiny Mixer of 8x8 px with random weights."""
    import torch

    from mlpmixer.data.preprocess import Preprocess
    from mlpmixer.inference.torch_classifier import from_network
    from mlpmixer.models.configs import MixerConfig
    from mlpmixer.models.mixer import Mixer
    from mlpmixer.weights.model_file import ModelMeta

    torch.manual_seed(0)
    size = {"num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 8}
    cfg = MixerConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, **size)
    network = Mixer(cfg)
    torch.nn.init.normal_(network.head.weight)
    classes = ("<b>0</b>", *map(str, range(1, 10)))
    return from_network(
        network, ModelMeta(config=cfg, classes=classes, preprocess=Preprocess(image_size=(8, 8), in_channels=1))
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "<i>noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(file)
    return file


CARD = "document.querySelector('article')"


def test_choose_image_and_see_evidence(digits: Any, serve: Serve, picture: Path, tmp_path: Path) -> None:
    (expected,) = digits.predict(picture)
    with Chromium() as browser:
        browser.open(address := serve(make_app(digits, name="digits")))
        browser.wait("document.querySelector('#name').textContent === 'digits'")
        browser.choose("#file", [picture])
        assert browser.wait(f"{CARD}?.querySelector('h3')?.textContent") == expected.label
        rows = browser.value(
            f"[...{CARD}.querySelectorAll('.row')].map(r => [...r.querySelectorAll('span')].map(s => s.textContent))"
        )
        assert len(rows) == 10 and rows[0] == [expected.label, f"{100 * expected.probability:.1f} %"]
        assert browser.value(f"{CARD}.querySelector('figcaption').textContent") == picture.name
        assert not browser.value("document.querySelector('#out b, #out figcaption i')"), "names are text"
        browser.value(f"{CARD}.querySelector('button.row').click()")
        browser.wait(f"{CARD}.querySelector('canvas').width === 4")
        assert "with the bias" in browser.value(f"{CARD}.innerText")
        browser.screenshot(tmp_path / "picture.png")
        assert all(url.startswith((address, "blob:", "data:")) for url in browser.asked), browser.asked
        assert not browser.problems, browser.problems


def test_draw_with_mouse_and_keys(digits: Any, serve: Serve, tmp_path: Path) -> None:
    with Chromium() as browser:
        browser.open(serve(make_app(digits)))
        browser.wait("!document.querySelector('#draw').hidden")
        box = browser.value("(b => [b.x, b.y, b.width])(document.querySelector('#board').getBoundingClientRect())")
        browser.draw([(box[0] + box[2] * x, box[1] + box[2] * y) for x, y in ((0.4, 0.2), (0.5, 0.4), (0.5, 0.8))])
        browser.wait(f"!!{CARD}?.querySelector('h3')")
        assert browser.value(f"{CARD}.querySelector('figcaption').textContent") == "drawing"
        browser.screenshot(tmp_path / "drawing.png")
        browser.value("document.querySelector('#clear').click()")
        browser.value("document.querySelector('#board').focus()")
        for key in (" ", *["ArrowDown"] * 5, "Enter"):
            browser.press(key)
        browser.wait("document.querySelectorAll('article h3').length === 2")
        assert not browser.problems, browser.problems


@pytest.mark.parametrize("width", [390, 1000])
def test_errors_are_shown_on_the_page(digits: Any, serve: Serve, picture: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:100])
    (tmp_path / "large.png").write_bytes(bytes(30_001))
    (tmp_path / "notes.txt").write_bytes(b"hello")
    with Chromium(width=width, height=800) as browser:
        browser.open(serve(make_app(digits, Settings(max_bytes=30_000))))
        browser.wait("model !== null")
        browser.choose("#file", [tmp_path / name for name in ("broken.png", "large.png", "notes.txt")] + [picture])
        browser.wait("document.querySelectorAll('article').length === 4 && !!document.querySelector('article h3')")
        said = browser.value("[...document.querySelectorAll('.bad')].map(e => e.textContent)")
        assert said[0].startswith("notes.txt: expected a JPEG, PNG, ") and said[0].endswith(" file, got another format")
        assert said[1] == "large.png: 0.0300 MB is too large: at most 0.0300 MB are accepted."
        assert said[2].startswith("broken.png: ") and "image:" not in said[2]
        shares = "[...document.querySelectorAll('.bad')].map(e => e.offsetWidth / e.parentNode.offsetWidth)"
        assert min(browser.value(shares)) > 0.9, "across the card"
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), "nothing stands over on a phone"
        browser.screenshot(tmp_path / "errors.png")


@pytest.mark.parametrize("width", [390, 1280])
def test_empty_page_names_the_classes_and_offers_samples(
    digits: Any, serve: Serve, picture: Path, tmp_path: Path, width: int
) -> None:
    (expected,) = digits.predict(picture)
    samples = read_samples(str(tmp_path))
    with Chromium(width=width, height=800) as browser:
        browser.open(address := serve(make_app(digits, name="digits", samples=samples)))
        browser.wait("!document.querySelector('#try').hidden")
        assert browser.value("document.querySelector('#classes summary').textContent").startswith(
            "Classes: <b>0</b> · 1"
        )
        assert browser.value("document.querySelectorAll('#classes li').length") == 0
        browser.value("document.querySelector('#classes summary').click()")
        browser.wait("document.querySelectorAll('#classes li').length === 10")
        browser.value("document.querySelector('#samples button').click()")
        assert browser.wait(f"{CARD}?.querySelector('h3')?.textContent") == expected.label
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.screenshot(tmp_path / "empty.png")
        assert all(url.startswith((address, "blob:", "data:")) for url in browser.asked), browser.asked
        assert not browser.problems, browser.problems


def test_image_that_only_the_service_reads_has_no_broken_picture(digits: Any, serve: Serve, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 200).save(tmp_path / "scan.tiff")
    with Chromium() as browser:
        browser.open(serve(make_app(digits)))
        browser.wait("model !== null")
        browser.choose("#file", [tmp_path / "scan.tiff"])
        browser.wait(f"{CARD}?.querySelector('img')?.hidden && !!{CARD}.querySelector('h3')")
        browser.value(f"{CARD}.querySelector('button.row').click()")
        browser.wait(f"!{CARD}.querySelector('img').hidden && {CARD}.querySelector('canvas').width === 4")


def test_page_asks_for_token(digits: Any, serve: Serve, picture: Path) -> None:
    with Chromium() as browser:
        browser.open(serve(make_app(digits, token="geheim", name="digits")))
        browser.wait("!document.querySelector('#door').hidden")
        for given in ("falsch", "geheim"):
            browser.value(f"document.querySelector('#token').value = '{given}'")
            browser.value("document.querySelector('#key').requestSubmit()")
        browser.wait(
            "document.querySelector('#door').hidden && document.querySelector('#name').textContent === 'digits'"
        )
        browser.choose("#file", [picture])
        browser.wait(f"!!{CARD}?.querySelector('h3')")


@pytest.mark.parametrize("width", [390, 1280])
def test_docs_page_has_examples_and_a_form(
    digits: Any, serve: Serve, picture: Path, tmp_path: Path, width: int
) -> None:
    with Chromium(width=width) as browser:
        browser.open((address := serve(make_app(digits))) + "docs")
        browser.wait("document.body && document.body.innerText.includes('POST /predict')")
        browser.choose("#try input[type=file]", [picture])
        browser.value("document.querySelector('#try').requestSubmit()")
        browser.wait("document.querySelector('#answer').textContent.startsWith('200 OK')")
        assert digits.predict(picture)[0].label in browser.value("document.querySelector('#answer').textContent")
        assert f"{address}predict?top_k=3" in browser.value("document.querySelector('.example').textContent")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.screenshot(tmp_path / "docs.png")
        shown = np.asarray(Image.open(io.BytesIO((tmp_path / "docs.png").read_bytes())))
        assert len(np.unique(shown)) > 10 and not browser.problems


def test_all_classes_from_the_threshold_on_are_named(squares_run: Path, serve: Serve) -> None:
    model = load(squares_run)
    names = [squares_run.parent / "images" / f"{i}.png" for i in range(20)]
    found = model.predict(names)
    several, none = (
        next(i for i, p in enumerate(found) if ok(len(p.labels))) for ok in (lambda n: n > 1, lambda n: not n)
    )
    with Chromium() as browser:
        browser.open(serve(make_app(model, name="squares")))
        browser.wait("document.querySelector('#name').textContent === 'squares'")
        browser.choose("#file", [names[several]])
        assert browser.wait(f"{CARD}?.querySelector('h3')?.textContent") == ", ".join(found[several].labels)
        browser.choose("#file", [names[none]])
        assert browser.wait(f"{CARD}?.querySelector('h3')?.textContent.startsWith('none of the classes (from ')")
