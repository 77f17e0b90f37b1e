"""Convert any weights to a file of this package, of timm's names, or of an official format."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer.config import checked, pair
from mlpmixer.weights.formats import name_table, write_foreign
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.model_file import Precision, save_model

if TYPE_CHECKING:
    from mlpmixer.download import Report


def convert(
    name: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    timm: bool = False,
    official: bool = False,
    precision: Precision = "float32",
    report: "Report | None" = None,
) -> list[str]:
    """Write the model behind `name` (see `load_weights`) to the file `out`; returns what that format cannot hold.

    out: .safetensors is our format, or theirs with `timm` or `official`; .npz is the official format of Mixers.
    precision: float16 is half as large, in our format only; see `model_file.save_model`.
    report: receives the progress of a download.

    Errors: ValueError for another suffix and an unreadable model, OSError when `out` cannot be written.
    """
    path = Path(out)
    if path.suffix not in (".npz", ".safetensors") or (timm and (official or path.suffix == ".npz")):
        raise ValueError(
            f"cannot write {path}: expected FILE.npz (official format, Mixers only), FILE.safetensors (ours), or "
            "FILE.safetensors with either --timm or --official"
        )
    checked(Precision, precision, "precision")
    ours = path.suffix == ".safetensors" and not (timm or official)
    if precision != "float32" and not ours:
        raise ValueError(f"{precision} is for FILE.safetensors of this package; the other forms are float32")
    model, meta = load_weights(name, report=report)
    if ours:
        save_model(path, model, meta, precision)
        return []
    cfg, form = model.cfg, "timm" if timm else "official"
    table = name_table(cfg, form)
    if pair(getattr(cfg, "parts", 1)) != (1, 1):
        raise ValueError("the other forms have no parts: write the dense form, models.mixer_resize.to_dense")
    if table.suffix != path.suffix:
        instead = " with --official" if table.suffix == ".safetensors" else ""
        raise ValueError(f"cannot write {path}: the {form} form of {cfg.architecture} is FILE{table.suffix}{instead}")
    write_foreign(path, cfg, model.state_dict(), form)
    notes = ["class names and preprocessing are not part of this form"]
    if table.activation and cfg.activation != table.activation:
        notes.append(
            f"the model was trained with {cfg.activation}, but what reads this form computes {table.activation}"
        )
    return notes
