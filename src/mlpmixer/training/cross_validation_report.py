"""The page of a cross-validation: its folds, and the labels that most likely are wrong, as self-contained HTML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpmixer.evaluation.html import render
from mlpmixer.evaluation.report import Thumbnail, picture, view
from mlpmixer.weights.privacy import without_folders

TEMPLATE = Path(__file__).with_name("templates") / "folds.html"


def folds_html(folder: Path, summary: dict[str, Any], recipe: dict[str, Any], thumbnails: Sequence[Thumbnail]) -> str:
    """The page as HTML. thumbnails: those of summary["suspicious"], in its order."""
    recipe = without_folders(recipe)
    return render(
        TEMPLATE,
        title=" · ".join(dict.fromkeys([recipe["name"], folder.resolve().name])),
        data=recipe["data"]["name"],
        summary=summary,
        result=view(summary["metrics"]),
        suspicious=list(zip(summary["suspicious"], map(picture, thumbnails), strict=True)),
    )
