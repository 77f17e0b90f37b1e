"""The contact sheet shows what training sees, one row per image."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlpmixer.data.config import Data
from mlpmixer.training.preview import contact_sheet, describe, font_for, preview
from mlpmixer.training.recipe import Augment


def squares(n: int, side: int, channels: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels)).astype(np.uint8)


class Plain:
    """Stands for a Preprocess: arrays of one size from what `source` returns."""

    def __init__(self, side: int) -> None:
        self.side = side

    def scaled(self, factor: float) -> "Plain":
        return Plain(round(self.side * factor))

    def array(self, source: int) -> Any:
        if source == 1:
            raise ValueError("truncated")
        return np.full((self.side, self.side, 3), 10 * source, np.uint8)


class Images:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 2])

    def __len__(self) -> int:
        return 8

    def source(self, i: int) -> int:
        return i


def fake_splits() -> Any:
    return SimpleNamespace(name="squares", train=Images(), classes=("cat", "dog", "a very long class name " * 5))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_sheet_shows_the_plain_view_first(tmp_path: Path, channels: int) -> None:
    images = squares(3, 16, channels)
    path = contact_sheet(
        images, images, [0, 1, 0], ["cat", "dog"], Augment(flip=True, mixup=0.5), tmp_path / "new" / "a.png", draws=2
    )
    sheet = np.asarray(Image.open(path).convert("RGB"))
    enlarged = images[0].repeat(8, 0).repeat(8, 1)
    shown = enlarged[..., :3] if channels >= 3 else enlarged[..., :1].repeat(3, -1)
    tops = [y for y in range(len(sheet) - 128) if np.array_equal(sheet[y : y + 128, 6:134], shown)]
    assert len(tops) == 1


def drawn(
    monkeypatch: pytest.MonkeyPatch, path: Path, labels: list[int], classes: list[str], cfg: Augment
) -> list[str]:
    """All texts on a sheet of squares."""
    texts: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, *_: texts.append(text))
        contact_sheet(squares(len(labels), 16, 3), squares(len(labels), 16, 3), labels, classes, cfg, path, draws=2)
    return [text for text in texts if text]


def test_each_image_has_its_class_and_mixed_ones_their_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn(monkeypatch, tmp_path / "a.png", [0, 1], ["6", "8"], Augment(flip=True))
    assert texts[-9:] == ["evaluation", "6", "8", "draw 1", "6", "8", "draw 2", "6", "8"]
    texts = drawn(monkeypatch, tmp_path / "b.png", [0, 1], ["6", "8"], Augment(cutmix=1.0))
    assert [text for text in texts if text.startswith("draw")] == ["draw 1, mixed", "draw 2, mixed"]
    pairs = [(texts[i], texts[i + 1]) for i, text in enumerate(texts) if text.endswith(" % of ")]
    assert len(pairs) == 8 and {name for _, name in pairs} == {"6", "8"}
    shares = [int(share.split()[0]) for share, _ in pairs]
    assert all(a + b == 100 and a >= b for a, b in zip(shares[::2], shares[1::2], strict=True))
    assert "mixed" not in "".join(drawn(monkeypatch, tmp_path / "c.png", [0, 0], ["6", "8"], Augment(cutmix=1.0))[1:])


def test_class_names_in_any_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["Größe", "собака", "قطة", "cat", "\U000f0000"]  # the last is of no script
    for name in names[:4]:
        font = font_for(name)
        assert font is not None and all(bytes(font.getmask(c)) != bytes(font.getmask("\uffff")) for c in name)
    assert font_for(names[4]) is None
    texts = drawn(monkeypatch, tmp_path / "a.png", list(range(5)), names, Augment())
    assert texts[-5:] == [*names[:4], "class 4"]
    assert "has letters that no font on this machine has" in " ".join(texts[:4])
    assert "no font" not in " ".join(drawn(monkeypatch, tmp_path / "b.png", [0, 1], names[:4], Augment()))
    assert drawn(monkeypatch, tmp_path / "c.png", [0, 1], ["cat", "x" * 99], Augment())[-1].endswith("xx...")


def test_preview_spreads_over_classes_and_repeats(tmp_path: Path) -> None:
    pages = [tmp_path / f"{i}.png" for i in range(3)]
    for page, seed in zip(pages, (0, 0, 1), strict=True):
        cfg = Augment(inception_crop=0.2, noise=0.1)
        assert preview(fake_splits(), Data(train_scale=1.25), cfg, Plain(16), page, rows=3, cols=4, seed=seed) == page  # type: ignore[arg-type]
    assert pages[0].read_bytes() == pages[1].read_bytes() != pages[2].read_bytes()
    sheet = np.asarray(Image.open(pages[0]))
    assert (sheet == 60).all(-1).any() and (sheet == 70).all(-1).any()  # the only images of the rarer classes


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    splits = fake_splits()
    splits.train.source = lambda i: 1
    with pytest.raises(ValueError, match="no image of the training split of squares can be read"):
        preview(splits, Data(), Augment(), Plain(8), tmp_path / "a.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows >= 1 and cols >= 2"):
        preview(splits, Data(), Augment(), Plain(8), tmp_path / "a.png", cols=1)  # type: ignore[arg-type]


def test_title_names_what_is_on() -> None:
    assert describe(Augment()) == "no augmentation"
    assert describe(Augment(flip=True, pad_crop_px=4)) == "pad_crop_px=4, pad_mode=reflect, flip"
    assert (
        describe(Augment(randaugment_layers=2))
        == "randaugment_layers=2, randaugment_magnitude=9, randaugment_form=torchvision"
    )
    assert describe(Augment(cutmix=1.0)) == "cutmix=1.0, mix_probability=1.0"


def test_float_images_are_shown(tmp_path: Path) -> None:
    images = squares(2, 16, 3)
    kinds = (images, images.astype(np.float32))
    pages = [
        contact_sheet(x, x, [0, 1], ["cat", "dog"], Augment(flip=True), tmp_path / f"{x.dtype}.png") for x in kinds
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()
