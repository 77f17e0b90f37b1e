"""A .pt2 file, written by torch.export, for programs that have torch and not this package."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlpmixer.exporters.job import Job
from mlpmixer.inference.engines.torch import METADATA
from mlpmixer.inference.exported import metadata

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(job: Job, path: Path) -> None:
    import torch

    from mlpmixer.exporters.graph import Graph, example_of

    example, free = example_of(job)
    with torch.no_grad():
        program = torch.export.export(Graph(job).eval(), (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:  # drop the lines of Python, with the paths of this machine
        node.meta.pop("stack_trace", None)
    _save(program, job, path)


def finish(job: Job, path: Path) -> None:
    import torch

    _save(torch.export.load(path), job, path)


def _save(program: "ExportedProgram", job: Job, path: Path) -> None:
    import torch

    torch.export.save(program, path, extra_files={METADATA: metadata(job.meta, job.made)})
