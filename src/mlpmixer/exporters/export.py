"""A trained model in a form that others run. Each is checked, as it is written, against the model it was made from.

    export("runs/photos", "onnx", out="photos.onnx")     one file
    export("runs/photos", "openvino", out="photos.xml")  and photos.bin, its weights
    export("runs/photos", "pt2", out="photos.pt2")       one file, for torch
    export("runs/photos", "bundle", out="photos/")       a folder that needs onnxruntime, numpy and pillow, and nothing
    of this package export("runs/photos", "web", out="photos-page/")     a folder with a page that classifies in the
    browser, for any server of files

A target is a module of this folder with two functions, `write` and `finish`; all else is the same for all of them.
"""

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmixer import __version__
from mlpmixer.data.config import Data
from mlpmixer.evaluation.data import resolve_data
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
from mlpmixer.exporters.job import Job, require_fit
from mlpmixer.exporters.targets import bundle, onnx, openvino, pt2, web
from mlpmixer.inference.classifier import Classifier, load
from mlpmixer.inference.engines import SUFFIXES
from mlpmixer.inference.exported import export_at, open_export
from mlpmixer.models.architecture import capability, has
from mlpmixer.registry import Registry
from mlpmixer.weights.model_file import ModelMeta

if TYPE_CHECKING:
    from mlpmixer.weights.load import Report

__all__ = ["IMAGES", "TARGETS", "Checked", "ExportMismatch", "Int8", "Target", "Written", "export", "write_unchecked"]

IMAGES = 1000  # to check on


@dataclass(frozen=True)
class Target:
    """A form to export to."""

    name: str
    """Of the file or folder beside a run, where no other is given."""
    write: Callable[[Job, Path], None]
    """Writes what `exported.open_export` opens to a path that does not exist yet."""
    finish: Callable[[Job, Path, Checked], None]
    """Adds what the check found."""
    require: Callable[[Job], None] = lambda job: None
    """ValueError for a model that cannot be had in this form, or when what writes it is not installed. Asked before any
    work."""
    evidence: bool = False
    """Whether a network with tokens gives evidence in this form without being asked."""
    int8: str | None = "onnxruntime"
    """The engine that layers in int8 are for; None: there are none in this form."""
    beside: tuple[str, ...] = ()
    """Suffixes of further files, of the same name."""

    def files(self, path: Path) -> list[Path]:
        """All it writes, `path` last."""
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
    beside: tuple[Path, ...]
    """Further files, which belong to it."""
    num_bytes: int
    """Of all of them."""
    made: dict[str, Any]
    """As it is stored in the export."""
    checked: Checked
    int8: Int8 | None
    """What became of the layers, where int8 was asked for."""


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
    """Write the model to `out`, and compare it there with the torch model on real images. If they differ, nothing is
    left.

    With int8 they do differ: the float form is checked first, and then what top-1 on validation images may lose
    decides.

    model: a run, a weight file, a name of `mlpmixer list weights`, or a Classifier around a torch network on the CPU.
    to: a name of TARGETS. out: a file or folder that does not exist; None: beside the run.
    data: whose images to check on; None: those the run was trained on.
    batch: images at a time; None: any number, chosen anew with each call.
    int8: compute the layers in whole numbers of 8 bits, as many as cost at most half a point of top-1 on validation
    images (`export.int8`).
    any_size: let the graph resize and fit images of any size, too (a batch of one size at a time), and compare that
    with Pillow.
    evidence: let the graph say what each patch adds to each logit, too; a page always does, if the network can.
    page_runtime: for a page, the folder with onnxruntime-web; None: it is fetched by npm.
    top_k: how many of the likeliest classes the graph gives (fewer where the model has fewer).
    images: how many to check on, or all there are.
    licence: of the model, stored with it; "": what its own file says.
    report: receives the progress of a download.

    Errors: ExportMismatch when the two answer differently, or no layer can be int8; ValueError for a model, path, data or
    number that cannot be used, and for missing packages.
    """
    target = TARGETS[to]
    for name, value in (("batch", batch), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    classifier = model if isinstance(model, Classifier) else load(_no_export(model), report=report)
    meta = _meta(classifier, licence)
    if evidence:
        capability(classifier.network, "tokens", "evidence")
    if page_runtime is not None and target is not TARGETS["web"]:
        raise ValueError(
            f"page_runtime={os.fspath(page_runtime)} is what a page computes with, for web, not for {to}: leave it out"
        )
    if int8 and not target.int8:
        able = ", ".join(name for name, other in TARGETS.items() if other.int8)
        raise ValueError(f"there is no int8 in the form {to}: export to one of {able}")
    if any_size:
        require_fit(meta.preprocess)
    path = _free_path(out, classifier, target)
    evidence = evidence or (target.evidence and has(classifier.network, "tokens"))
    job = Job(
        classifier=classifier,
        meta=meta,
        batch=batch,
        top_k=min(top_k, len(meta.classes)),
        any_size=any_size,
        evidence=evidence,
        page_runtime=None if page_runtime is None else Path(page_runtime),
        made=_made(batch, any_size, evidence),
    )
    target.require(job)
    data = resolve_data(classifier, data)
    given = sample(data, images)
    judges = images_for(classifier, data) if int8 else None

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        if judges:
            job = _quantised(job, Path(scratch), given, judges, target.int8)
        part = Path(scratch) / path.name
        target.write(job, part)
        file = export_at(part)
        assert file
        checked = _checked(job, file, given)
        job = dataclasses.replace(job, made=job.made | {"check": dataclasses.asdict(checked)})
        target.finish(job, part, checked)
        for written, wanted in zip(target.files(part), target.files(path), strict=True):
            os.replace(written, wanted)
    *beside, _ = target.files(path)
    num_bytes = sum(f.stat().st_size for f in (*beside, path, *path.rglob("*")) if f.is_file())
    return Written(path=path, beside=tuple(beside), num_bytes=num_bytes, made=job.made, checked=checked, int8=job.int8)


def write_unchecked(classifier: Classifier, to: str, path: Path) -> None:
    """The model in the form `to` at `path`, as `export` writes it without options, for whoever compares its answers
    himself.

    Errors: ValueError for a model that cannot be exported, and for missing packages.
    """
    meta, target = _meta(classifier, ""), TARGETS[to]
    job = Job(
        classifier=classifier,
        meta=meta,
        batch=None,
        top_k=min(5, len(meta.classes)),
        any_size=False,
        evidence=False,
        page_runtime=None,
        made=_made(None, False, False),
    )
    target.require(job)
    target.write(job, path)


def _checked(job: Job, file: Path, given: Sample, engine: str | None = None) -> Checked:
    """What the export in `file` answers beside the model. ExportMismatch when it is not the same; layers in int8 may
    differ."""
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


def _quantised(job: Job, folder: Path, given: Sample, judges: CalibrationImages, engine: str | None) -> Job:
    """The job with layers in int8, in a file that is made in `folder` of a float one that has passed its check, both in
    `engine`."""
    whole, rounded = folder / "float.onnx", folder / "int8.onnx"
    onnx.write(job, whole)
    _checked(job, whole, given, engine)
    found = quantise(whole, rounded, judges, engine=engine)
    return dataclasses.replace(job, onnx=rounded, int8=found, made=job.made | {"int8": dataclasses.asdict(found)})


def _no_export(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    if export_at(model):
        raise ValueError(f"{os.fspath(model)} is an export already: export the run that it was made from")
    return model


def _meta(classifier: Classifier, licence: str) -> ModelMeta:
    """What travels with the export. ValueError for what is no torch model with a head, on the CPU."""
    meta, network = classifier.meta, classifier.network
    if meta is None or network is None:
        raise ValueError(
            "expected a run, a weight file, or a classifier that mlpmixer.load made of one: only a torch model can be "
            "exported"
        )
    if not meta.classes:
        raise ValueError(
            "this model has no head (num_classes=0), and an export answers with probabilities: train it on some data "
            "first"
        )
    if any(p.device.type != "cpu" for p in network.parameters()):
        raise ValueError("a model is exported from the CPU: mlpmixer.load(..., device='cpu')")
    return dataclasses.replace(meta, provenance=meta.provenance | {"licence": licence}) if licence else meta


def _free_path(out: str | os.PathLike[str] | None, classifier: Classifier, target: Target) -> Path:
    if out is None:
        if classifier.path is None or not classifier.path.with_name("recipe.json").is_file():
            raise ValueError(
                "where to? This model is no run of its own, beside which an export could lie: name a file or folder "
                "(--out)"
            )
        out = classifier.path.with_name(target.name)
    path = Path(out)
    suffix = Path(target.name).suffix
    if path.suffix != suffix and (suffix or path.suffix in SUFFIXES):
        raise ValueError(f"cannot write {path}: expected a {f'file that ends in {suffix}' if suffix else 'folder'}")
    for file in target.files(path):
        if file.exists() or file.is_symlink():
            raise ValueError(f"{file} exists already: name another (--out), or remove it")
    return path


def _made(batch: int | None, any_size: bool, evidence: bool) -> dict[str, Any]:
    import torch

    return {
        "batch": batch,
        "any_size": any_size,
        "evidence": evidence,
        "mlpmixer": __version__,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
