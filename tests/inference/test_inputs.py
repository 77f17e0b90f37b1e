"""One image gives one answer in every form, and what is no image is refused with a sentence."""

import functools
import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.greys import by_brightness, grey
from helpers.models import classifier_of, digits_classifier
from PIL import Image, ImageSequence

from mlpmixer.data.images import ImageError
from mlpmixer.models.configs import MixerConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 14, 3), np.uint8)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures and a file that is none, in folders."""
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS).save(tmp_path / "b.tif")
    grey(tmp_path / "more" / "c.png", 128)
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


@pytest.fixture
def site(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of `photos`, served on loopback."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(photos))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Answers:
    def read(self) -> list[int]:
        return [1]


FORMS = {
    "path": lambda p: str(p / "a.png"),
    "PathLike": lambda p: p / "a.png",
    "pattern": lambda p: str(p / "*.png"),
    "tiff": lambda p: p / "b.tif",
    "Pillow": lambda p: Image.open(p / "a.png"),
    "Pillow of an array": lambda p: Image.fromarray(PIXELS),
    "bytes": lambda p: (p / "a.png").read_bytes(),
    "bytearray": lambda p: bytearray((p / "a.png").read_bytes()),
    "memoryview": lambda p: memoryview((p / "a.png").read_bytes()),
    "open file": lambda p: io.BytesIO((p / "a.png").read_bytes()),
    "(H,W,C)": lambda p: PIXELS,
    "(B,H,W,C)": lambda p: PIXELS[None],
    "(H,W,C) not contiguous": lambda p: np.asfortranarray(PIXELS),
    "(H,W,C) of OpenCV, BGR turned": lambda p: PIXELS[..., ::-1].copy()[..., ::-1],
    "(H,W,C) float32": lambda p: (PIXELS / 255).astype(np.float32),
    "(H,W,C) float64": lambda p: PIXELS / 255,
    "(H,W,C) float16": lambda p: (PIXELS / 255).astype(np.float16),
    "(H,W,C) of a resize, a little out of 0..1": lambda p: PIXELS / 127.5 * 0.501 - 0.0008,
    "(C,H,W)": lambda p: TENSOR,
    "(B,C,H,W)": lambda p: TENSOR[None],
    "(C,H,W) float": lambda p: TENSOR / 255,
    "(C,H,W) with gradients": lambda p: (TENSOR / 255).requires_grad_(),
    "list": lambda p: [p / "a.png"],
    "tuple": lambda p: (PIXELS,),
    "generator": lambda p: (image for image in [PIXELS]),
    "array of paths": lambda p: np.array([str(p / "a.png")]),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_gives_the_same_bits_in_every_form(form: str, photos: Path) -> None:
    model = digits_classifier()
    (wanted,), (found,) = model.predict(photos / "a.png"), model.predict(FORMS[form](photos))
    assert found.top == wanted.top and type(found.name) is str


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_photo_taken_sideways_is_upright_in_every_form(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}", exif=exif, lossless=True)
    path, model = tmp_path / f"a.{suffix}", digits_classifier()
    with Image.open(path) as image:
        found = [model.predict(form)[0].top for form in (path, path.read_bytes(), image, np.rot90(PIXELS, -1))]
    assert found == found[:1] * 4 and found[0] != model.predict(PIXELS)[0].top


def test_an_address_gives_the_same_bits_when_it_may_be_fetched(site: str, photos: Path) -> None:
    model = digits_classifier()
    found = model.predict([f"{site}/a.png", photos / "a.png"], allow_urls=True)
    assert found[0].top == found[1].top and found[0].name == f"{site}/a.png"
    with pytest.raises(ImageError, match=r"a\.png: an address, .*allow_urls=True"):
        model.predict(f"{site}/a.png")
    with pytest.raises(ImageError, match=r"notes\.txt: could not be fetched: .*'text/plain', expected an image"):
        model.predict(f"{site}/notes.txt", allow_urls=True)
    with pytest.raises(ImageError, match=r"none\.png: could not be fetched: the server answers 404"):
        model.predict(f"{site}/none.png", allow_urls=True)
    with pytest.raises(ImageError, match="expected an address of http or https, got 's3://a/b'"):
        model.predict("s3://a/b", allow_urls=True)


def test_a_folder_gives_one_prediction_for_each_image(photos: Path) -> None:
    model = digits_classifier()
    names = [str(photos / name) for name in ("a.png", "b.tif", "more/c.png")]
    assert [p.name for p in model.predict(photos)] == [p.name for p in model.predict([str(photos)])] == names
    assert [p.name for p in model.predict(f"{photos}/**/*.png")] == [names[0], names[2]]
    (photos / "empty").mkdir()
    with pytest.raises(ImageError, match="empty: the folder holds no image files"):
        model.predict(photos / "empty")
    with pytest.raises(ImageError, match="no image file matches this pattern"):
        model.predict(f"{photos}/*.gif")
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        model.predict(photos / "none.png")


def test_images_without_a_name_are_counted_over_all(photos: Path) -> None:
    names = [p.name for p in digits_classifier().predict([np.stack([PIXELS] * 2), photos / "more", TENSOR, TENSOR])]
    assert names == ["image[0]", "image[1]", str(photos / "more" / "c.png"), "image[3]", "image[4]"]


def test_none_gives_none() -> None:
    for nothing in ([], (), PIXELS[None][:0], TENSOR[None][:0]):
        assert digits_classifier().predict(nothing) == []


def test_an_image_or_file_may_be_given_many_times(photos: Path) -> None:
    with open(photos / "a.png", "rb") as file, Image.open(photos / "a.png") as image:
        found = digits_classifier().predict([file, image] * 40)
    assert len({p.top for p in found}) == 1 and {p.name for p in found} == {str(photos / "a.png")}


def test_frames_may_come_in_one_array_that_changes() -> None:
    """As a video's do; a GIF's come in one Pillow image."""
    frames = [np.full((8, 8, 1), value, np.uint8) for value in (0, 90, 180, 250)]
    array, picture, gif = np.empty_like(frames[0]), Image.new("L", (8, 8)), io.BytesIO()
    first, *others = [Image.fromarray(frame[..., 0]) for frame in frames]
    first.save(gif, "GIF", save_all=True, append_images=others)

    def changing(same: Any) -> Iterator[Any]:
        for frame in frames:
            array[:] = frame
            picture.paste(Image.fromarray(frame[..., 0]))
            yield same

    model = digits_classifier()
    tensor, wanted = torch.from_numpy(array).permute(2, 0, 1), [p.top for p in model.predict(frames)]
    assert len(set(wanted)) == 4
    for same in (array, array[None], tensor, tensor[None], picture):
        assert [p.top for p in model.predict(changing(same))] == wanted
    assert [p.top for p in model.predict(ImageSequence.Iterator(Image.open(gif)))] == wanted


def test_the_type_decides_which_axis_holds_the_channels() -> None:
    """(3,8,3) fits both."""
    pixels = np.zeros((3, 8, 3), np.uint8)
    pixels[0] = 255
    model = digits_classifier()
    assert model.predict(pixels)[0].top == model.predict(Image.fromarray(pixels))[0].top
    red = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    assert model.predict(torch.from_numpy(pixels))[0].top == model.predict(red)[0].top


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, r"image\[0\]: NoneType is not an image: expected a path, folder"),
        (3, "int is not an image"),
        ({"image": PIXELS}, "dict is not an image"),
        ([[PIXELS]], "list is not an image"),
        ((PIXELS, 3), r"image\[1\]: int is not an image"),
        (io.StringIO("text"), r"a file opened for text: expected one opened for bytes, open\(path, 'rb'\)"),
        (Answers(), r"got one whose read\(\) gives list"),
        (np.array(None), "got object of shape"),
        (
            torch.from_numpy(PIXELS),
            r"\(C,H,W\) or \(B,C,H,W\) with C = 1 or 3 or 4, got an image of shape \(11, 14, 3\)",
        ),
        (torch.from_numpy(PIXELS)[None], r"got an image of shape \(11, 14, 3\); with channels last: tensor\.permute"),
        (TENSOR[0], r"got an image of shape \(11, 14\)"),
        (PIXELS.transpose(2, 0, 1), r"expected 1 channels, the last axis of \(h, w, 1\), got shape \(3, 11, 14\)"),
        (PIXELS[0, 0], "expected uint8 pixels"),
        (PIXELS.astype(np.float32), r"floats \(0 to 1\), not yet normalised; got float32 from \d to 255 of shape"),
        (TENSOR / 127.5 - 1, r"not yet normalised; got float32 from -1 to 1 of"),
        (np.full((4, 4), np.nan), "got float64 from nan to nan"),
        (PIXELS.astype(np.int64), r"got int64 from \d to 255"),
        (PIXELS / 254, r"got float64 from 0\.?\d* to 1\.00394 of"),
        (PIXELS > 5, "got bool of shape"),
        (TENSOR.to_sparse(), "whose pixels numpy can hold: can't convert Sparse layout"),
        (TENSOR.to("meta"), "whose pixels numpy can hold: Cannot copy out of meta tensor"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8 pixels"),
        (b"", "empty file"),
        (b"words", "not an image"),
        ("", "no such file"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        digits_classifier().predict(given)


def test_other_numbers_of_channels() -> None:
    size = {"num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 8, "num_classes": 10}
    model = classifier_of(MixerConfig(image_size=8, patch_size=4, in_channels=5, **size))
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 5), np.uint8)
    assert model.predict(pixels)[0].top == model.predict(torch.from_numpy(pixels).permute(2, 0, 1))[0].top
    with pytest.raises(ValueError, match="with C = 5, got an image of shape"):
        model.predict(TENSOR)


def test_a_closed_file_is_refused() -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="closed file"):
        by_brightness().predict(closed)
