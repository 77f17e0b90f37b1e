"""A folder with a page that classifies in the browser, by onnxruntime-web: nothing but files, for any server of
files."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from mlpmixer.exporters import onnxruntime_web
from mlpmixer.exporters.check import Checked
from mlpmixer.exporters.job import Job, require_fit, require_program
from mlpmixer.exporters.targets import bundle, onnx
from mlpmixer.exporters.web_page import page, standing_alone
from mlpmixer.inference.exported import MANIFEST, MODEL

RUNTIME = onnxruntime_web.NAME
SCRIPTS = ("'self'", "'wasm-unsafe-eval'")  # the runtime's script, and that it may compile its .wasm


def require(job: Job) -> None:
    """ValueError for a model whose preprocessing the page does not have, and when packages, the runtime or npm are
    missing."""
    require_program(job.meta, "the page")
    require_fit(job.meta.preprocess, "the page")
    onnx.require(job)
    onnxruntime_web.require(job.page_runtime)


def write(job: Job, path: Path) -> None:
    path.mkdir()
    onnxruntime_web.place(path / RUNTIME, job.page_runtime)
    onnx.write(job, path / MODEL)
    bundle.write_manifest(path)


def finish(job: Job, path: Path, checked: Checked) -> None:
    onnx.finish(job, path / MODEL, checked)
    bundle.write_manifest(path)
    (path / "index.html").write_text(standing_alone(page("browser", _model(job, path)), *SCRIPTS), encoding="utf-8")
    (path / "README.md").write_text(readme(job, checked), encoding="utf-8")


def _model(job: Job, path: Path) -> dict[str, Any]:
    """What the page knows of the model before it is loaded, and the digests of what it loads."""
    meta, pre = job.meta, job.meta.preprocess
    files = [path / MODEL, path / RUNTIME / onnxruntime_web.WASM]
    return {
        "name": str(meta.provenance.get("data") or ""),
        "classes": meta.classes,
        "image_size": pre.image_size,
        "in_channels": pre.in_channels,
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


def readme(job: Job, checked: Checked) -> str:
    """What the folder is, how to look at it, and what was measured when it was made."""
    pre = job.meta.preprocess
    height, width = pre.image_size
    return f"""\
# An image classifier in a page

{bundle.described(job)}
Everything is computed in the browser: no image leaves the machine that looks at the page, which asks for nothing but the files
of this folder.

```
python -m http.server --bind 127.0.0.1    # in this folder; then open http://127.0.0.1:8000/
```

Any server of files will do for others; it needs no header and no setting. A page that is opened as a file (file://) cannot load the
network: browsers forbid it.

## Measured when it was made

{bundle.measured(job, checked)}

## The files

- `index.html`: the page. It brings an image of any size to {width}x{height} pixels as in training (fit: {pre.fit}, {pre.interpolation},
  antialiased), and asks the model. Its Content-Security-Policy allows no other place.
- `{MODEL}`: the network, from pixels to probabilities. `{MANIFEST}`: its SHA-256; by it `mlpmixer predict` takes this folder as well.
- `{RUNTIME}/`: what computes it, and its licence. The page takes neither its .wasm nor the model when they are not those it was made with.

{bundle.origin(job.meta)}
"""
