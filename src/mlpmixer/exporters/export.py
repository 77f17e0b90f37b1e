"""Export: a trained model in a form that runs elsewhere, checked against the model as it is written.

    export("runs/photos", "onnx", out="photos.onnx")     one file
    export("runs/photos", "openvino", out="photos.xml")  and photos.bin, its weights
    export("runs/photos", "pt2", out="photos.pt2")       one file, for torch
    export("runs/photos", "bundle", out="photos/")       a folder that needs onnxruntime, numpy and pillow only
    export("runs/photos", "web", out="photos-page/")     a folder with a page that classifies in the browser

A target is a file in `targets` with two functions, `write` and `finish`; the rest is the same for all targets.
"""

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmixer.data.config import Data
from mlpmixer.evaluation.data import open_for
from mlpmixer.exporters.check import (
    EVIDENCE_TOLERANCE,
    Checked,
    ExportMismatch,
    Sample,
    check,
    check_evidence,
    check_fit,
    sample,
)
from mlpmixer.exporters.int8 import CalibrationImages, Int8, images_for, quantise
from mlpmixer.exporters.job import Job, new_job
from mlpmixer.exporters.targets import bundle, onnx, openvino, pt2, web
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.engines import SUFFIXES
from mlpmixer.inference.exported import export_at, open_export
from mlpmixer.inference.load import load
from mlpmixer.models.architecture import has
from mlpmixer.registry import Registry

if TYPE_CHECKING:
    from mlpmixer.download import Report

__all__ = ["IMAGES", "TARGETS", "Checked", "ExportMismatch", "Int8", "Target", "Written", "export", "write_unchecked"]

IMAGES = 1000  # to check on


@dataclass(frozen=True)
class Target:
    """A format to export to."""

    name: str
    """Default name of the file or folder, in a run."""
    write: Callable[[Job, Path], None]
    """Writes what `exported.open_export` opens to a path that does not exist yet."""
    finish: Callable[[Job, Path], None]
    """Adds the findings of the check, `job.checked`, to it."""
    require: Callable[[Job], None] = lambda job: None
    """ValueError, before any work, for a model that has no such form and for missing packages."""
    evidence: bool = False
    """Whether it holds evidence without being asked, if the network has tokens."""
    int8: str | None = "onnxruntime"
    """The engine that runs layers in int8; None: this form has no such layers."""
    beside: tuple[str, ...] = ()
    """Suffixes of further files of the same name."""

    def files(self, path: Path) -> list[Path]:
        """All that it writes, `path` last."""
        return [*(path.with_suffix(suffix) for suffix in self.beside), path]


TARGETS: Registry[Target] = Registry("export")
TARGETS["onnx"] = Target("model.onnx", onnx.write, onnx.finish, onnx.require)
TARGETS["openvino"] = Target(
    "model.xml", openvino.write, openvino.finish, openvino.require, int8="openvino", beside=(".bin",)
)
TARGETS["pt2"] = Target("model.pt2", pt2.write, pt2.finish, int8=None)
TARGETS["bundle"] = Target("bundle", bundle.write, bundle.finish, bundle.require)
TARGETS["web"] = Target("web", web.write, web.finish, web.require, evidence=True)


@dataclass(frozen=True, kw_only=True)
class Written:
    """An export that has passed its check."""

    path: Path
    """The file, or the folder of a bundle or page."""
    beside: tuple[Path, ...]
    """Further files that belong to it."""
    num_bytes: int
    """Size of all files."""
    made: dict[str, Any]
    """How it was made, as it is stored in the export."""
    checked: Checked
    """How far its answers are from the model's."""
    int8: Int8 | None
    """The layers in int8, if they were asked for."""


def export(
    model: Classifier | str | os.PathLike[str],
    to: str = "onnx",
    *,
    out: str | os.PathLike[str] | None = None,
    data: Data | str | None = None,
    batch: int | None = None,
    any_size: bool = False,
    evidence: bool = False,
    page_runtime: str | os.PathLike[str] | None = None,
    int8: bool = False,
    top_k: int = 5,
    images: int = IMAGES,
    licence: str = "",
    report: "Report | None" = None,
) -> Written:
    """Write the model to `out` and compare it with the torch model on real images; on a mismatch, nothing is left.

    model: a run, a weight file, a name of `mlpmixer list weights`, or a Classifier around a torch network on the CPU.
    to: a name of TARGETS. out: a file or folder that does not exist; None: in the run's folder, or in the current one.
    data: the images to check on; None: those the run was trained on.
    batch: images at a time; None: any number, which each call chooses.
    any_size: let the graph resize and crop images of any size (one size per batch), and compare that with Pillow.
    evidence: let the graph output what each patch adds to each logit; a web page always does, if the network can.
    page_runtime: for a web page, the folder with onnxruntime-web; None: npm fetches it.
    int8: compute matrix products in 8-bit integers, in as many layers as cost at most half a point of top-1 on
        validation images (`exporters.int8`). The float form is checked first; then that rule decides, not the check.
    top_k: number of likeliest classes that the graph outputs, or all if there are fewer.
    images: number of images to check on, or all if there are fewer.
    licence: the model's licence, stored with it; "": what its own file says.
    report: receives the progress of a download.

    Errors: ExportMismatch when export and model give different answers or no layer can be int8; ValueError for a model,
    path, data or number that cannot be used, and for missing packages.
    """
    target = TARGETS[to]
    if out is not None:
        require_free(Path(out), target)
    classifier = model if isinstance(model, Classifier) else load(_require_run(model), report=report)
    job = new_job(
        classifier,
        batch=batch,
        top_k=top_k,
        any_size=any_size,
        evidence=evidence or (target.evidence and has(classifier.network, "tokens")),
        page_runtime=None if page_runtime is None else Path(page_runtime),
        licence=licence,
    )
    if page_runtime is not None and target is not TARGETS["web"]:
        raise ValueError(f"page_runtime={os.fspath(page_runtime)} is for a page (web), not for {to}: leave it out")
    if int8 and not target.int8:
        able = ", ".join(name for name, other in TARGETS.items() if other.int8)
        raise ValueError(f"{to} has no int8: export to one of {able}")
    if int8 and classifier.multi_label:
        raise ValueError("int8 is judged by top-1, and this model may give an image several classes: leave int8 out")
    path = _free_path(out, classifier, target)
    target.require(job)
    opened = open_for(classifier, data)
    given = sample(opened, images)
    calibration = images_for(classifier, opened) if int8 else None

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        if calibration:
            job = _quantised(job, Path(scratch), given, calibration, target.int8)
        part = Path(scratch) / path.name
        target.write(job, part)
        job = dataclasses.replace(job, checked=_checked(job, part, given))
        target.finish(job, part)
        for written, wanted in zip(target.files(part), target.files(path), strict=True):
            os.replace(written, wanted)
    *beside, _ = target.files(path)
    num_bytes = sum(f.stat().st_size for f in (*beside, path, *path.rglob("*")) if f.is_file())
    assert job.checked
    return Written(
        path=path, beside=tuple(beside), num_bytes=num_bytes, made=job.made, checked=job.checked, int8=job.int8
    )


def write_unchecked(classifier: Classifier, to: str, path: Path) -> None:
    """The model in the form `to` at `path`, as `export` writes it without options; the caller compares its answers.

    Errors: ValueError for a model that cannot be exported, and for missing packages.
    """
    job, target = new_job(classifier), TARGETS[to]
    target.require(job)
    target.write(job, path)


def _checked(job: Job, path: Path, given: Sample, engine: str | None = None) -> Checked:
    """The export at `path` against the model. ExportMismatch when they differ, but for layers in int8."""
    file = export_at(path)
    assert file
    opened = open_export(file, engine=engine)
    checked = check(job.classifier, opened, given)
    if not job.int8:
        checked.require_float()
    if job.any_size:
        checked = dataclasses.replace(checked, fit=check_fit(job.classifier, opened, given))
    if job.evidence:
        off = check_evidence(job.classifier, opened, given, math.inf if job.int8 else EVIDENCE_TOLERANCE)
        checked = dataclasses.replace(checked, evidence_max_diff=off)
    return checked


def _quantised(job: Job, folder: Path, given: Sample, images: CalibrationImages, engine: str | None) -> Job:
    """The job with layers in int8, made in `folder` from a float file that has passed its check, both in `engine`."""
    whole, rounded = folder / "float.onnx", folder / "int8.onnx"
    onnx.write(job, whole)
    _checked(job, whole, given, engine)
    return dataclasses.replace(job, onnx=rounded, int8=quantise(whole, rounded, images, engine=engine))


def _require_run(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    if export_at(model):
        raise ValueError(f"{os.fspath(model)} is an export already: export the run that it was made from")
    return model


def _free_path(out: str | os.PathLike[str] | None, classifier: Classifier, target: Target) -> Path:
    if out is None:
        if classifier.path is None:
            raise ValueError(
                "where to? An export is written beside the model's file, and this model has none: name a path (out)"
            )
        in_run = classifier.path.with_name("recipe.json").is_file()
        out = classifier.path.with_name(target.name) if in_run else Path(target.name)
    return require_free(Path(out), target)


def require_free(path: Path, target: Target) -> Path:
    """The path, if the target can be written there. ValueError."""
    suffix = Path(target.name).suffix
    if path.suffix != suffix and (suffix or path.suffix in SUFFIXES):
        raise ValueError(f"cannot write {path}: expected a {f'file that ends in {suffix}' if suffix else 'folder'}")
    for file in target.files(path):
        if file.exists() or file.is_symlink():
            raise ValueError(f"{file} exists already: name another (--out), or remove it")
    return path
