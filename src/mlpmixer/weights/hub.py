"""A trained model as a repository of the Hugging Face Hub: pushed from a run, to the Hub or to a folder, and fetched
again. No torch.

A repository holds model.safetensors, which is all that `predict.load` needs, config.json (the same description,
readable without this package) and README.md, a model card that says what the run's own files say and nothing else.
"""

import copy
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlpmixer.config import to_json
from mlpmixer.data.catalog import DATASETS
from mlpmixer.download import FetchError, hub_file
from mlpmixer.weights.model_file import FORMAT, ModelMeta, read_meta, require_network
from mlpmixer.weights.run_folder import MODEL_FILE, read_recipe_json, write_json

SHOWN = ("architecture", "image_size", "in_channels", "num_classes")  # elsewhere on the card
CLASSES_SHOWN = 100  # in the card; config.json has all


def push(
    run: str | os.PathLike[str], target: str | os.PathLike[str], *, licence: str = "", private: bool = False
) -> str:
    """Publish the model of a run folder (or a model.safetensors): to a new folder, or to the Hub when `target` is
    hf:owner/name.

    licence: as the Hub writes it (apache-2.0, mit, ...); without one the card says that none is stated.
    private: who may see a repository that this call creates on the Hub; an existing one stays as it is and gets a new
    commit.

    Gives the folder, or the repository's address. ValueError when `run` holds no model, when the folder holds something
    already, and when the Hub refuses or cannot be reached; OSError when nothing can be written.
    """
    run, place = Path(run), os.fspath(target)
    model = run / MODEL_FILE if run.is_dir() else run
    if not model.is_file():
        raise ValueError(f"nothing to push: expected a finished run, which holds {MODEL_FILE}, or that file, got {run}")
    meta = read_meta(model)
    require_network(model, meta)
    if place.startswith("hf:"):
        repo = _repo(place)
        with tempfile.TemporaryDirectory() as scratch:
            _write(model, meta, Path(scratch), _card(model.parent, meta, repo.split("/")[1], place, licence))
            return _upload(Path(scratch), repo, private)
    folder = Path(place)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write(model, meta, folder, _card(model.parent, meta, folder.resolve().name, ".", licence))
    return str(folder)


def download(name: str) -> Path:
    """The model file of the Hub's repository `name`, hf:owner/name, in huggingface-hub's cache; looked up anew where
    there is a network.

    ValueError, which says what to do without a network, when it cannot be had.
    """
    repo = _repo(name)
    try:
        return hub_file(repo, MODEL_FILE)
    except FetchError as e:
        raise ValueError(
            f"{name} could not be fetched: {e}. Without a network: download "
            f"https://huggingface.co/{repo}/resolve/main/{MODEL_FILE} "
            f"elsewhere and give the path of that file instead of {name}"
        ) from e


def _repo(name: str) -> str:
    if not re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name):
        raise ValueError(f"expected hf:owner/name, got {name!r}")
    return name[3:]


def _upload(folder: Path, repo: str, private: bool) -> str:
    try:
        import huggingface_hub as hub
    except ImportError as e:
        raise ValueError(
            'pushing to the Hub needs huggingface-hub: pip install "mlpmixer[hf]"; or push to a folder'
        ) from e
    try:
        hub.HfApi().create_repo(repo, private=private, exist_ok=True)
        hub.HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Push with mlpmixer")
    except Exception as e:  # no network, not logged in, no right to write: the hub has many ways to say so
        reason = str(e).strip().partition("\n")[0].rstrip(".") or type(e).__name__
        raise ValueError(
            f"hf:{repo} could not be written: {reason}. Log in with a token that may write (hf auth login), or push to "
            f"a folder "
            f"and upload that"
        ) from e
    return f"https://huggingface.co/{repo}"


def _write(model: Path, meta: ModelMeta, folder: Path, card: str) -> None:
    shutil.copyfile(model, folder / MODEL_FILE)
    write_json(folder / "config.json", {"library_name": "mlpmixer", "format": FORMAT, **to_json(meta)})
    (folder / "README.md").write_text(card, encoding="utf-8")


# --- the model card -----------------------------------------------------------------------------------------------


def _card(run: Path, meta: ModelMeta, name: str, where: str, licence: str) -> str:
    """The card of the model in `run`, to be loaded from `where`. Each line has its source in the model file or in the
    run's files."""
    recipe = read_recipe_json(run) if (run / "recipe.json").is_file() else None
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8")) if (run / "summary.json").is_file() else {}
    scores = _scores(meta, summary)
    what = (
        f"An image classifier of {len(meta.classes):,} classes"
        if meta.classes
        else "A network for image features, without a head"
    )
    cfg, pre = meta.config, meta.preprocess
    shown = ", ".join(_code(c) for c in meta.classes[:CLASSES_SHOWN])
    more = (
        f" and {len(meta.classes) - CLASSES_SHOWN:,} more, see config.json" if len(meta.classes) > CLASSES_SHOWN else ""
    )
    training = [f"- {key}: {value}" for key, value in _training(meta, summary).items() if value]
    parts = [
        _front_matter(meta, name, licence, recipe, scores),
        f"# {name}",
        f"{what}: [MLP-Mixer](https://arxiv.org/abs/2105.01601), {cfg.num_params:,} parameters, made with mlpmixer.",
        "## Use",
        f"```\nmlpmixer predict {where} IMAGE...\n```",
        f'```python\nimport mlpmixer\n\nclassifier = mlpmixer.load("{where}")\nprint(classifier.predict("photo.jpg"))\n```',
        "Class names and preprocessing are stored with the weights; images of any size can be given.",
        "## Data and training",
        "\n".join(training) or "Nothing is recorded with this model.",
        *([_details("The whole recipe", json.dumps(_public(recipe), indent=2, ensure_ascii=False))] if recipe else []),
        "## Metrics",
        _table(scores) if scores else "None are recorded with this model.",
        "## Network",
        f"- input: {_px(pre.image_size)}, {cfg.in_channels} channels, fit {pre.fit}, {pre.interpolation}, "
        f"mean {list(pre.mean)} and std {list(pre.std)} of the 0..1 range\n"
        f"- {cfg.architecture}: {', '.join(f'{key} {value}' for key, value in to_json(cfg).items() if key not in SHOWN)}\n"
        f"- classes: {shown}{more}",
        "## Licence",
        f"{licence}, as stated by whoever published this model." if licence else "None is stated.",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(meta: ModelMeta, summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics by split (test, validation), of those that were measured."""
    if summary:
        found = {"test": summary.get("test"), "validation": summary.get("val")}
    else:
        stored = meta.provenance.get("metrics") or {}
        found = {"test": {"top1": stored.get("top1")}, "validation": {"top1": stored.get("val_top1")}}
    return {split: score for split, score in found.items() if score and score.get("top1") is not None}


def _training(meta: ModelMeta, summary: dict[str, Any]) -> dict[str, str]:
    origin = meta.provenance
    return {
        "data": _code(str(origin["data"])) if origin.get("data") else "",
        "training images": f"{summary['train_images']:,}" if summary.get("train_images") else "",
        "recipe": _code(str(origin["recipe"])) if origin.get("recipe") else "",
        "optimizer steps": f"{summary['steps']:,}" if summary.get("steps") else "",
        "training time": f"{summary['train_s']:,.0f} s" if summary.get("train_s") else "",
        "hardware": f"{summary['device']}, {summary.get('precision', '')}".rstrip(", ")
        if summary.get("device")
        else "",
        "loss": str(origin.get("loss", "")),
        "seed": str(summary.get("seed", "")),
        "mlpmixer": " ".join(str(origin[k]) for k in ("version", "commit") if origin.get(k)),
        "date": str(origin.get("date", "")),
    }


def _front_matter(
    meta: ModelMeta, name: str, licence: str, recipe: dict[str, Any] | None, scores: dict[str, dict[str, Any]]
) -> str:
    """What the Hub reads, as YAML; JSON is YAML."""
    repo = _data_repo(recipe)
    data = str(meta.provenance.get("data") or "")
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"type": repo or data, "name": data, "split": split},
            "metrics": [{"type": "accuracy", "name": "top-1", "value": score["top1"]}],
        }
        for split, score in scores.items()
        if data
    ]
    fields: dict[str, Any] = {
        "library_name": "mlpmixer",
        "pipeline_tag": "image-classification",
        "tags": ["mlp-mixer"],
        **({"license": licence} if licence else {}),
        **({"datasets": [repo]} if repo else {}),
        **({"model-index": [{"name": name, "results": results}]} if results else {}),
    }
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()), "---"]
    )


def _data_repo(recipe: dict[str, Any] | None) -> str:
    """The Hub's repository of the training data, where the recipe names it."""
    data = recipe["data"]["name"] if recipe else ""
    return data[3:] if data.startswith("hf:") else DATASETS[data].repo if data in DATASETS else ""


def _public(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without the folders of the machine it ran on."""
    values = copy.deepcopy(recipe)
    data = values["data"]
    name = data["name"] if data["name"].startswith("hf:") else Path(data["name"]).name
    return values | {"data": {k: v for k, v in data.items() if k != "data_dir"} | {"name": name}}


def _table(scores: dict[str, dict[str, Any]]) -> str:
    columns = {"n": "images", "top1": "top-1", "top5": "top-5", "nll": "nll", "ece": "ece"}
    used = [c for c in columns if any(score.get(c) is not None for score in scores.values())]

    def cell(column: str, value: Any) -> str:
        return (
            ""
            if value is None
            else f"{value:,}"
            if column == "n"
            else f"{100 * value:.2f} %"
            if "top" in column
            else f"{value:.4f}"
        )

    rows = [["split", *(columns[c] for c in used)], ["---"] * (len(used) + 1)]
    rows += [[split, *(cell(c, score.get(c)) for c in used)] for split, score in scores.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n```json\n{text}\n```\n\n</details>"


def _code(text: str) -> str:
    """`text` as code, so that no name is read as markup."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
