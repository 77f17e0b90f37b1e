"""A folder with a page that classifies in the browser with onnxruntime-web, for any server of static files."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from mlpmixer.exporters import onnxruntime_web
from mlpmixer.exporters.job import Job, require_fit, require_program
from mlpmixer.exporters.targets import bundle, onnx
from mlpmixer.exporters.texts import fill, write_licence
from mlpmixer.exporters.web_page import page, standing_alone
from mlpmixer.inference.exported import MODEL

RUNTIME = onnxruntime_web.NAME
SCRIPTS = ("'self'", "'wasm-unsafe-eval'")  # the runtime's script, and that it may compile its .wasm


def require(job: Job) -> None:
    """ValueError for a model whose preprocessing the page does not have, and for a missing package, runtime or npm."""
    require_program(job.meta, "the page")
    require_fit(job.meta.preprocess, "the page")
    onnx.require(job)
    onnxruntime_web.require(job.page_runtime)


def write(job: Job, path: Path) -> None:
    path.mkdir()
    onnxruntime_web.place(path / RUNTIME, job.page_runtime)
    onnx.write(job, path / MODEL)
    bundle.write_manifest(path)


def finish(job: Job, path: Path) -> None:
    onnx.finish(job, path / MODEL)
    bundle.write_manifest(path)
    (path / "index.html").write_text(standing_alone(page("browser", _model(job, path)), *SCRIPTS), encoding="utf-8")
    (path / "README.md").write_text(fill("web.md", job), encoding="utf-8")
    write_licence(path)


def _model(job: Job, path: Path) -> dict[str, Any]:
    """MODEL of the page: what it knows before it loads anything, and the digests of what it loads."""
    meta, pre = job.meta, job.meta.preprocess
    files = [path / MODEL, path / RUNTIME / onnxruntime_web.WASM]
    return {
        "name": str(meta.provenance.get("data") or ""),
        "classes": meta.classes,
        "image_size": pre.image_size,
        "in_channels": pre.in_channels,
        "threshold": meta.threshold,
        "fit": pre.fit,
        "batch": job.batch,
        "evidence": job.evidence,
        "grid": meta.config.grid if job.evidence else None,
        "files": {file.relative_to(path).as_posix(): _integrity(file) for file in files},
        "num_bytes": sum(file.stat().st_size for file in (*files, path / RUNTIME / onnxruntime_web.SCRIPT)),
    }


def _integrity(file: Path) -> str:
    """As browsers check it (W3C, Subresource Integrity)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()}"
