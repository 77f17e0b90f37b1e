"""Classify images with the model in this folder: python predict.py photo.jpg more/*.png. Install requirements.txt."""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # numpy computes next to nothing here, and starting its threads takes time
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Model:
    """The model in `folder`. Raises ValueError when it is not the file that the bundle was made with."""

    def __init__(self, folder: Path = Path(__file__).parent, threads: int = 0) -> None:
        with open(folder / "model.onnx", "rb") as f:  # hashed in chunks, so that memory holds the file once
            found = hashlib.file_digest(f, "sha256").hexdigest()
        if found != json.loads((folder / "bundle.json").read_text("utf-8"))["files"]["model.onnx"]:
            raise ValueError(f"{folder / 'model.onnx'} is not the file that this bundle was made with")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: one for each core
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        about = json.loads(self.session.get_modelmeta().custom_metadata_map["mlpmixer"])["model"]
        self.classes, self.preprocess = about["classes"], about["preprocess"]
        self.threshold = about.get("threshold")  # None: an image has one class

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels (N, height, width, channels), as `pixels` returns them, stacked -> (N, classes) float32."""
        batch = self.session.get_inputs()[0].shape[0]
        size = batch if isinstance(batch, int) else max(len(pixels), 1)  # a fixed batch is filled up
        parts = [np.resize(pixels[i : i + size], (size, *pixels.shape[1:])) for i in range(0, len(pixels), size)]
        answers = [self.session.run(["probabilities"], {"images": part})[0] for part in parts]
        return np.concatenate(answers)[: len(pixels)]

    def predict(self, image: str | Path | Image.Image, top: int = 5) -> list[tuple[str, float]]:
        """The `top` likeliest classes of one image with their probabilities, and all others that are predicted."""
        (p,) = self.probabilities(self.pixels(image)[None])
        ranked = [(self.classes[k], float(p[k])) for k in np.argsort(-p, kind="stable")]
        return ranked[: max(top, len(self.predicted(ranked)))]

    def predicted(self, top: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """The classes that the image has, of the likeliest: one; or all at or above the threshold, perhaps none."""
        return top[:1] if self.threshold is None else [(label, p) for label, p in top if p >= self.threshold]

    def pixels(self, image: str | Path | Image.Image) -> np.ndarray:
        """An image of any size and mode -> uint8 pixels (height, width, channels), preprocessed as in training."""
        pre, (height, width) = self.preprocess, self.preprocess["image_size"]
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        plain = eight_bit(ImageOps.exif_transpose(opened), "L" if pre["in_channels"] == 1 else "RGB")
        return np.asarray(fitted(plain, (width, height), pre["fit"], pre["interpolation"])).reshape(height, width, -1)


def eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """8-bit grey or RGB: 16-bit values are divided by 257, transparency is drawn on white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bit (mode {image.mode}): save it with 8 or 16 bit")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode) if image.mode in ("1", "L", mode) else image.convert("RGB").convert(mode)


def fitted(image: Image.Image, size: tuple[int, int], fit: str, interpolation: str) -> Image.Image:
    """The image at `size` (width, height), resized by the rule `fit`."""
    (width, height), (w, h), method = size, image.size, Image.Resampling[interpolation.upper()]
    if fit == "squash" or image.size == size:
        return image.resize(size, method)  # a copy where the size is right already
    if fit == "crop":  # the largest centred part of the model's shape
        scale = max(width / w, height / h)
        dx, dy = max(w - width / scale, 0) / 2, max(h - height / scale, 0) / 2
        return image.resize(size, method, box=(dx, dy, w - dx, h - dy))
    scale = min(width / w, height / h)  # pad: the whole image on grey
    w, h = min(max(round(w * scale), 1), width), min(max(round(h * scale), 1), height)
    canvas = Image.new(image.mode, size, 128 if image.mode == "L" else (128,) * 3)
    canvas.paste(image.resize((w, h), method), ((width - w) // 2, (height - h) // 2))
    return canvas


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Classify images. An unreadable image is reported and skipped, and the exit code is 1."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=5, help="number of classes per image (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    model, failed = Model(), 0
    for name in args.images:
        try:
            top = model.predict(name, args.top)
        except (OSError, ValueError, Image.DecompressionBombError) as e:
            failed = 1
            print(f"{name}: {getattr(e, 'strerror', None) or e}", file=sys.stderr)
            continue
        record = {"image": name, "top": [{"label": label, "probability": p} for label, p in top]}
        shown = top
        if model.threshold is not None:
            shown = model.predicted(top)
            record = {"image": name, "labels": [label for label, _ in shown], "top": record["top"]}
        lines = [name, *(f"  {100 * p:6.2f} %  {label}" for label, p in shown)]
        if not shown:
            lines.append(f"  no class reaches {100 * model.threshold:.2f} %")
        text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
        print(json.dumps(record, ensure_ascii=False) if args.json else text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
