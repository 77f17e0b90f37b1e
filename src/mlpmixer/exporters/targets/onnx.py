"""One .onnx file, written by torch.onnx: only operations of the standard, with all about the model in its metadata."""

import ast
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer.exporters.job import Job, require_packages
from mlpmixer.inference.engines.session import KEY, log_level
from mlpmixer.inference.exported import INPUT, metadata

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn
    from torch.export import Dim

OPSET = 20  # the first in which GELU is one operation (onnx.ai/onnx/operators/onnx__Gelu.html)


def require(job: Job) -> None:
    """ValueError unless the packages that write and check it are installed."""
    require_packages("ONNX", "onnx", "onnx", "onnxscript", "onnxruntime")  # torch.onnx needs the first two


def write(job: Job, path: Path) -> None:
    if job.onnx:
        import onnx

        _save(onnx.load(str(job.onnx)), job, path)
        return
    from mlpmixer.exporters.graph import Graph, example_of

    graph = Graph(job).eval()
    example, free = example_of(job)
    _save(graph_of(graph, example, free, list(graph(example))), job, path)


def graph_of(
    module: "nn.Module", example: "Tensor", free: "Mapping[int, Dim]", outputs: Sequence[str]
) -> "onnx.ModelProto":
    """A module of one input, `images`, without traces of this machine.

    example: an input to trace it with. free: its axes of any length. outputs: names of what it returns.
    """
    import torch

    with log_level("torch.onnx", logging.ERROR), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations between torch and onnxscript
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(free,),
            input_names=[INPUT],
            output_names=outputs,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _without_traces(model)
    return model


def finish(job: Job, path: Path) -> None:
    import onnx

    _save(onnx.load(str(path)), job, path)


def _save(model: "onnx.ModelProto", job: Job, path: Path) -> None:
    import onnx

    model.producer_name, model.producer_version = "mlpmixer", job.made["mlpmixer"]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: metadata(job.meta, job.made)})
    onnx.save(model, str(path))


def _without_traces(model: "onnx.ModelProto") -> None:
    """Drop the lines of Python, with the paths of this machine, that torch.onnx stores with each operation.

    The module stays, as the first part of a node's name: network.blocks.0.token_mixing.fc1/node_MatMul_12.
    """
    graph, values = model.graph, ("initializer", "input", "output", "value_info")
    for node in graph.node:
        props = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(props.get("pkg.torch.onnx.name_scopes", "[]"))
        if len(scopes) > 1 and scopes[-2]:
            node.name = f"{scopes[-2]}/{node.name}"
    for item in (graph, *graph.node, *model.functions, *(value for name in values for value in getattr(graph, name))):
        del item.metadata_props[:]
        item.doc_string = ""
