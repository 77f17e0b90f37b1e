"""One .onnx file, through torch.onnx: operations of the standard alone, and all that belongs to the model in its
metadata."""

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer.exporters.job import Job, require_packages
from mlpmixer.inference.engines.session import KEY
from mlpmixer.inference.exported import INPUT, metadata

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first in which GELU is one operation (onnx.ai/onnx/operators/onnx__Gelu.html)


def require(job: Job) -> None:
    """ValueError unless what writes it and what checks it is installed."""
    require_packages("ONNX", "onnx", "onnx", "onnxscript", "onnxruntime")  # torch.onnx works with the first two


def write(job: Job, path: Path) -> None:
    if job.onnx:
        import onnx

        _save(onnx.load(str(job.onnx)), job, path)
        return
    import torch

    from mlpmixer.exporters.graph import example_of, graph_of

    graph = graph_of(job)
    example, free = example_of(job)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(free,),
            input_names=[INPUT],
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _without_traces(model)
    _save(model, job, path)


def finish(job: Job, path: Path) -> None:
    import onnx

    _save(onnx.load(str(path)), job, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Deprecations between torch and onnxscript, and what it says of a missing torchvision, are not the user's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _save(model: "onnx.ModelProto", job: Job, path: Path) -> None:
    import onnx

    model.producer_name, model.producer_version = "mlpmixer", job.made["mlpmixer"]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: metadata(job.meta, job.made)})
    onnx.save(model, str(path))


def _without_traces(model: "onnx.ModelProto") -> None:
    """torch.onnx keeps for each operation the lines of Python it comes from, with the paths of this machine.

    The module of the network stays, as the first part of a node's name:
    network.blocks.0.token_mixing.fc1/node_MatMul_12.
    """
    graph = model.graph
    for node in graph.node:
        scopes = [
            ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"
        ]
        module = scopes[0][-2] if scopes and len(scopes[0]) > 1 else ""
        node.name = f"{module}/{node.name}" if module else node.name
    for thing in (
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *model.functions,
    ):
        del thing.metadata_props[:]
        thing.doc_string = ""
