"""The model card of a repository of the Hugging Face Hub: what the model file and its run say, and nothing else."""

import json
import shlex
from pathlib import Path
from typing import Any

from mlpmixer.config import to_json
from mlpmixer.data.catalog import DATASETS
from mlpmixer.durable import read_json
from mlpmixer.templates import render
from mlpmixer.weights.model_file import STORED_AS, ModelMeta
from mlpmixer.weights.privacy import without_folders
from mlpmixer.weights.run_folder import METRICS, metric_of, read_recipe_json, read_summary

TEMPLATE = Path(__file__).with_name("templates") / "card.md"
CLASSES_SHOWN = 100  # the model file has all
SHOWN = ("architecture", "image_size", "in_channels", "num_classes")  # fields of the network that have their own line
COLUMNS = {
    "n": ("images", "{:,}"),
    "top1": ("top-1", "%"),
    "map": ("mAP", "%"),
    "f1_micro": ("F1 (micro)", "%"),
    "threshold": ("threshold", "{:g}"),
    "top5": ("top-5", "%"),
    "nll": ("nll", "{:.4f}"),
    "ece": ("ece", "{:.4f}"),
}

KINDS = {"top1": "accuracy", "map": "mean_average_precision"}  # as the Hub calls them

Scores = dict[str, dict[str, Any]]


def model_card(run: Path, meta: ModelMeta, name: str, where: str, licence: str) -> str:
    """The card of the model in `run`, which is loaded from `where`."""
    recipe = read_recipe_json(run) if (run / "recipe.json").is_file() else None
    summary = read_summary(run) or {}
    scores = _scores(meta, summary)
    columns = [key for key in COLUMNS if any(score.get(key) is not None for score in scores.values())]
    return render(
        TEMPLATE,
        filters={"code": _code, "json": lambda value: json.dumps(value, ensure_ascii=False)},
        front_matter=_front_matter(meta, name, licence, recipe, scores),
        name=name,
        where=where,
        licence=licence,
        cfg=meta.config,
        pre=meta.preprocess,
        settings=[f"{key} {value}" for key, value in to_json(meta.config).items() if key not in SHOWN],
        stored_as=meta.provenance.get(STORED_AS),
        classes=meta.classes[:CLASSES_SHOWN],
        num_classes=len(meta.classes),
        threshold=meta.threshold,
        training=[(key, value) for key, value in _training(run, meta, summary, recipe).items() if value],
        limits=meta.provenance.get("limits"),
        terms=meta.provenance.get("terms"),
        recipe=json.dumps(without_folders(recipe), indent=2, ensure_ascii=False) if recipe else "",
        columns=[COLUMNS[key][0] for key in columns],
        rows=[(split, [_cell(key, score.get(key)) for key in columns]) for split, score in scores.items()],
    )


def _scores(meta: ModelMeta, summary: dict[str, Any]) -> Scores:
    """Metrics by split, test and validation, as far as they were measured."""
    if summary:
        found = {"test": summary.get("test"), "validation": summary.get("val")}
    else:
        stored = meta.provenance.get("metrics") or {}
        metric = metric_of(stored)
        found = {"test": {metric: stored.get(metric)}, "validation": {metric: stored.get(f"val_{metric}")}}
    return {split: score for split, score in found.items() if score and score.get(metric_of(score)) is not None}


def _cell(key: str, value: Any) -> str:
    form = COLUMNS[key][1]
    return "" if value is None else f"{100 * value:.2f} %" if form == "%" else form.format(value)


def _training(run: Path, meta: ModelMeta, summary: dict[str, Any], recipe: dict[str, Any] | None) -> dict[str, str]:
    origin, env = meta.provenance, read_json(run / "env.json") if (run / "env.json").is_file() else {}
    counted = f"{summary['train_images']:,}" if summary.get("train_images") else ""
    start = str(recipe["init"]["weights"]) if recipe else ""
    hardware = (str(summary.get(key) or "") for key in ("device", "precision"))
    return {
        "data": _code(str(origin["data"])) if origin.get("data") else "",
        "terms of the data": str(origin.get("terms", "")),
        "started from": _code(without_folders(start)) if start else "",
        "learned from": str(origin.get("learned_from", "")),
        "training images": str(origin.get("images") or counted),
        "recipe": _code(str(origin["recipe"])) if origin.get("recipe") else "",
        "command": _code(shlex.join(without_folders(env["command"]))) if env.get("command") else "",
        "optimizer steps": f"{summary['steps']:,}" if summary.get("steps") else "",
        "training time": f"{summary['train_s']:,.0f} s" if summary.get("train_s") else "",
        "hardware": ", ".join(filter(None, hardware)) if summary.get("device") else "",
        "loss": str(origin.get("loss", "")),
        "seed": str(summary.get("seed", "")),
        "source": str(origin.get("source", "")),
        "mlpmixer": " ".join(str(origin[key]) for key in ("version", "commit") if origin.get(key)),
        "date": str(origin.get("date", "")),
    }


def _front_matter(
    meta: ModelMeta, name: str, licence: str, recipe: dict[str, Any] | None, scores: Scores
) -> dict[str, Any]:
    """The front matter that the Hub reads: YAML, of which JSON is a part."""
    trained_on = recipe["data"]["name"] if recipe else ""
    repo = (
        trained_on[3:] if trained_on.startswith("hf:") else DATASETS[trained_on].repo if trained_on in DATASETS else ""
    )
    data = str(meta.provenance.get("data") or "")
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"type": repo or data, "name": data, "split": split},
            "metrics": [{"type": KINDS[metric], "name": METRICS[metric], "value": score[metric]}],
        }
        for split, score in scores.items()
        for metric in [metric_of(score)]
        if data
    ]
    fields = {
        "library_name": "mlpmixer",
        "pipeline_tag": "image-classification",
        "tags": [(meta.config.title or meta.config.architecture).lower().replace(" ", "-")],
        "license": licence,
        "datasets": [repo] if repo else [],
        "model-index": [{"name": name, "results": results}] if results else [],
    }
    return {key: value for key, value in fields.items() if value}


def _code(text: str) -> str:
    """`text` as code, so that no name is read as markup."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
