"""A trained model by its name or file: `mlpmixer.load`. Imports torch for a run, unless another engine
computes it, and none for an export."""

import os
from typing import TYPE_CHECKING, Any

from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.compiled_classifier import COMPILED, require_suitable, without_torch
from mlpmixer.inference.engines import Precision
from mlpmixer.inference.engines.compiled import Unsuitable
from mlpmixer.inference.exported import export_at, open_export
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.configs import Method

if TYPE_CHECKING:
    import torch

    from mlpmixer.download import Report
    from mlpmixer.models.architecture import Build
    from mlpmixer.models.configs import Size


def load(
    path: str | os.PathLike[str],
    *,
    device: "str | torch.device" = "cpu",
    engine: str | None = None,
    precision: Precision = "float32",
    streams: int = 1,
    threads: int = 0,
    image_size: "int | Size | None" = None,
    patch_size: "int | Size | None" = None,
    in_channels: int | None = None,
    resize: Method = "bicubic",
    magnified: bool = False,
    report: "Report | None" = None,
    network: "Build | None" = None,
) -> Classifier:
    """A trained model, ready to classify.

    path: a run, a weight file, hf:owner/name, a name of `mlpmixer list weights`, or an export (an .onnx, .xml or .pt2
        file or a bundle), which runs on the CPU at its own size and, but for .pt2, without torch.
    device: auto, cpu, cuda, cuda:1, mps.
    engine: what computes it. For an export, see `exported.open_export`. For a run: torch, the default; compiled, for a
        plain Mixer on the CPU in float32, which needs no torch and starts sooner, but has no `network`; or auto:
        compiled where possible, else torch.
    precision: bfloat16 is faster where the device has it, with about three digits (in torch: autocast).
    streams: number of calls, from several threads, that compute at the same time on the CPU: more images/s, but each
        call takes longer. With more than one, torch uses no more than `threads` in the whole process.
    threads: CPU threads of each stream; 0: the engine's default, or an equal share of the cores for several streams.
    image_size, patch_size (pixels), in_channels: other sizes, without further training. `adapt.adapt` says what each
        costs in accuracy, and what `resize` (the method) and `magnified` are. The preprocessing follows.
    report: receives the progress of a download, and {"kind": "note", "note": ...}.
    network: the function that built the network, for a run that `train(recipe, network=...)` made.

    Errors: ValueError, which says what was expected, when there is no model at `path`, it is damaged, or it cannot be
    downloaded.
    """
    name = os.fspath(path)
    given: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
    sizes = {field: value for field, value in given.items() if value is not None}
    if (resize != "bicubic" or magnified) and not sizes.keys() - {"in_channels"}:
        raise ValueError("resize and magnified are about another size: give image_size or patch_size, too")
    how: dict[str, Any] = {"precision": precision, "streams": streams, "threads": threads}
    if file := export_at(path):
        engine = None if engine == "auto" else engine
        if sizes or network is not None:
            raise ValueError(f"{name} is an export, whose size is fixed: export the run again at another size")
        if str(device) not in ("auto", "cpu"):
            raise ValueError(f"{name} is an export, which runs on the CPU; device={str(device)!r} is for runs")
        return Exported(open_export(file, engine=engine, **how))
    if engine not in (None, "auto", "torch", COMPILED):
        raise ValueError(f"{name} is not an export; only torch and compiled can run it (engine={engine} given)")
    from mlpmixer.weights.load import load_file, locate

    file = locate(name, report=report)
    if engine in ("auto", COMPILED):
        try:
            where = "cpu" if engine == COMPILED and str(device) == "auto" else str(device)
            require_suitable(where, precision, resized=bool(sizes), own=network is not None)
            return without_torch(file, streams=streams, threads=threads)
        except Unsuitable as e:
            if engine == COMPILED:
                raise ValueError(f"{name} cannot be computed without torch: {e}; engine=torch computes it") from None
    if network is None:
        model, meta = load_file(file, name, report=report)
        if sizes:
            from mlpmixer.weights.adapt import adapt_trained

            trained = model.cfg
            model, meta = adapt_trained(model, meta, **sizes, method=resize, magnified=magnified)
            if report and (note := trained.note_at(model.cfg.image_size)):
                report({"kind": "note", "note": note})
    else:
        from mlpmixer.weights.model_file import load_model

        if sizes:
            raise ValueError(f"{', '.join(sizes)} cannot be changed for a network of your own (network=)")
        model, meta = load_model(file, network)
    return from_network(model, meta, device=device, path=file, **how)
