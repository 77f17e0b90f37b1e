"""The texts of an exported folder: what the model is, how to use it, and what was measured when it was made."""

from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mlpmixer.evaluation.significance import wilson
from mlpmixer.exporters.job import Job

TEMPLATES = Environment(
    loader=PackageLoader("mlpmixer.exporters"), trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
)


def write_licence(folder: Path) -> None:
    """Write the licence of this package, of which a program or page is a part, to LICENSE in `folder`."""
    try:
        text = metadata.distribution("mlpmixer").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        text = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
    assert text
    (folder / "LICENSE").write_text(text, encoding="utf-8")


def fill(template: str, job: Job, **more: Any) -> str:
    """A file of `templates`, filled for an export that has passed its check."""
    checked, pre = job.checked, job.meta.preprocess
    assert checked
    height, width = pre.image_size
    tested = checked.right is not None and checked.n_test > 0
    return TEMPLATES.get_template(template).render(
        job=job,
        meta=job.meta,
        pre=pre,
        height=height,
        width=width,
        checked=checked,
        interval=wilson(checked.right or 0, checked.n_test) if tested else None,
        percent=lambda share: f"{100 * share:.2f} %",
        **more,
    )
