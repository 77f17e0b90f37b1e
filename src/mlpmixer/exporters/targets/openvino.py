"""OpenVINO's own form, an .xml with its weights in a .bin, made from the .onnx file of the target onnx."""

from pathlib import Path
from xml.etree import ElementTree

from mlpmixer.exporters.job import Job, require_packages
from mlpmixer.exporters.targets import onnx as to_onnx
from mlpmixer.inference.engines.openvino import PLACE, import_openvino
from mlpmixer.inference.exported import digest, metadata


def require(job: Job) -> None:
    """ValueError unless the packages that write it are installed."""
    require_packages("OpenVINO", "openvino", "openvino")
    require_packages("ONNX, on the way to OpenVINO,", "onnx", "onnx", "onnxscript")


def write(job: Job, path: Path) -> None:
    openvino = import_openvino()
    onnx = path.with_suffix(".onnx")
    to_onnx.write(job, onnx)
    openvino.save_model(openvino.Core().read_model(onnx), path, compress_to_fp16=False)
    onnx.unlink()
    _store(job, path)


def finish(job: Job, path: Path) -> None:
    _store(job, path)


def _store(job: Job, path: Path) -> None:
    """Replace the metadata of the .onnx file, with the digest of the weights added."""
    tree = ElementTree.parse(path)
    entry = tree.find("/".join(("rt_info", *PLACE)))
    assert entry is not None
    entry.set("value", metadata(job.meta, job.made, digest(path.with_suffix(".bin"))))
    tree.write(path, encoding="utf-8", xml_declaration=True)
