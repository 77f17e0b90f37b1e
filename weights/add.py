"""Make weights of our own from a finished run: weights/NAME.safetensors in float16, and its card, weights/NAME.md.

    python weights/add.py NAME RUN --images "photos of Tiny-ImageNet" --terms "ImageNet's terms: non-commercial" \
      --limits "Photos that show one of 200 things, large; at 64 px."

It prints the entry for the table, `OWN` of src/mlpmixer/weights/own.py. Card and entry say what the run's files say,
and what they cannot know: what the images are, under which terms one has them, and what the model is not good for.
Accuracy is the run's, measured before its weights were rounded to float16, and both say so.
tests/weights/test_own.py compares file, card and entry.
"""

import argparse
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

from mlpmixer.data.catalog import DATASETS
from mlpmixer.models.names import MODELS
from mlpmixer.weights.card import model_card
from mlpmixer.weights.model_file import load_model, public, read_meta, save_model
from mlpmixer.weights.own import OWN, SOURCE, OwnWeights
from mlpmixer.weights.published import WEIGHTS
from mlpmixer.weights.run_folder import MODEL_FILE, read_summary

FOLDER = Path(__file__).parent


def add(name: str, run: Path, *, images: str, terms: str, limits: str, licence: str = "") -> OwnWeights:
    """Write the file and its card; the entry that belongs to them."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name in MODELS or name in WEIGHTS or name in OWN:
        raise SystemExit(
            f"{name}: expected a new name of small letters, numbers and hyphens, such as small-photos; to replace "
            "weights, take their entry out of the table first"
        )
    summary = read_summary(run)
    if summary is None:
        raise SystemExit(f"{run} is not a finished run: it has no summary.json")
    file, (model, meta) = FOLDER / f"{name}.safetensors", load_model(run / MODEL_FILE)
    if meta.threshold is not None:
        raise SystemExit(f"{run} gives an image several classes or none: the table has top-1, which is for one class")
    data = replace(meta.data, data_dir=None) if meta.data and meta.data.name in DATASETS else None
    images = f"{summary['train_images']:,} {images}"
    provenance = meta.provenance | {"source": SOURCE, "images": images, "terms": terms, "limits": limits}
    save_model(file, model, replace(public(meta), data=data, provenance=provenance), "float16")
    file.with_suffix(".md").write_text(model_card(run, read_meta(file), name, name, licence), encoding="utf-8")
    scores, split = (summary["test"], "test images") if summary["test"] else (summary["val"], "validation images")
    if summary["test"] and meta.data and meta.data.val_is_test:
        split = "images of its own validation split"
    return OwnWeights(
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        num_bytes=file.stat().st_size,
        num_params=meta.config.num_params,
        num_classes=len(meta.classes),
        image_size=meta.config.image_size,
        data=images,
        terms=terms,
        top1=round(scores["top1"], 4),
        measured_on=f"{scores['n']:,} {split}, before rounding to float16",
        train_s=round(summary["train_s"]),
    )


def source_of(name: str, own: OwnWeights) -> str:
    """The lines of the table."""
    fields = {key: value for key, value in vars(own).items() if value not in ({}, "")}
    values = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, str) else f"{v!r}" for k, v in fields.items()}
    values["num_bytes"], values["num_params"] = f"{own.num_bytes:_}", f"{own.num_params:_}"
    return "\n".join([f'OWN["{name}"] = OwnWeights(', *(f"    {key}={value}," for key, value in values.items()), ")"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--images", required=True, help="what the training images are; their number is the run's")
    parser.add_argument("--terms", required=True, help="the terms under which one has them")
    parser.add_argument("--limits", required=True, help="what the model is for, and what it is not good for")
    parser.add_argument("--licence", default="", help="of the weights, as the Hub writes it; default: none is stated")
    given = vars(parser.parse_args())
    name = given.pop("name")
    print(source_of(name, add(name, given.pop("run"), **given)))


if __name__ == "__main__":
    main()
