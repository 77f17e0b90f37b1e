"""A classifier around a torch network. Imports torch once one is made."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpmixer.config import checked
from mlpmixer.inference.classifier import CHUNK, Classifier
from mlpmixer.inference.engines import Precision, Runtime, threads_each
from mlpmixer.inference.prediction import Floats
from mlpmixer.models.architecture import architecture_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mlpmixer.weights.model_file import ModelMeta


def from_network(
    network: "nn.Module",
    meta: "ModelMeta",
    *,
    device: "str | torch.device" = "cpu",
    precision: Precision = "float32",
    streams: int = 1,
    threads: int = 0,
    path: Path | None = None,
) -> Classifier:
    """A Classifier around a torch network, which is put in evaluation mode, in float32, on `device`.

    On a CPU it runs on compiled kernels where the network and this machine have them: other modules around the same
    parameters. `network` itself keeps its modules, may be trained further, and is always computed as it is then, in
    evaluation mode.
    """
    import torch

    from mlpmixer.hardware import choose_device
    from mlpmixer.inference.engines.torch import computing, evaluating, limit_threads
    from mlpmixer.models.architecture import capability, has

    where, threads = choose_device(device), threads_each(streams, threads)
    if streams > 1 and where.type != "cpu":
        raise ValueError(f"several streams need the CPU: expected streams=1 on {where}, got {streams}")
    limit_threads(streams, threads)
    network = network.to(device=where, dtype=torch.float32).eval()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[checked(Precision, precision, "precision")]
    fast: Any = network  # what computes
    kernels = capability(network, "kernels", "inference") if where.type == "cpu" and has(network, "kernels") else None
    if kernels and kernels.unsupported_reason(network, [dtype]):
        kernels = None
    shared: list[int] = []  # the parameters that both have
    has_head = bool(architecture_of(network))  # logits are head(pre_logits); other code's networks do not say

    def run(images: Floats, function: Callable[[Any], tuple[Any, ...]]) -> tuple[Floats, ...]:
        nonlocal fast, shared
        if kernels and (now := [*map(id, network.parameters())]) != shared:  # another head, perhaps
            is_fast = not kernels.unsupported_reason(network, [dtype])
            fast, shared = kernels.for_inference(network) if is_fast else network, now
        mode = nullcontext() if fast is not network else evaluating(network)
        with torch.inference_mode(), computing(where.type, precision, threads), mode:
            size = kernels.images_per_chunk(fast.cfg) if kernels and fast is not network else CHUNK
            parts = torch.split(torch.from_numpy(images).to(where), size)
            outputs = ([output.float().cpu().numpy() for output in function(part)] for part in parts)
            return tuple(np.concatenate(output) for output in zip(*outputs, strict=True))

    def pre_logits(part: Any) -> Any:
        return getattr(fast, "pre_logits", _no_features)(part)

    def both(part: Any) -> tuple[Any, Any]:
        features = pre_logits(part)
        return fast.head(features) if has_head else fast(part), features

    return Classifier(
        classes=meta.classes,
        preprocess=meta.preprocess,
        logits=lambda images: run(images, lambda part: (fast(part),))[0],
        pre_logits=lambda images: run(images, lambda part: (pre_logits(part),))[0],
        both=lambda images: run(images, both),
        sigmoid=meta.sigmoid,
        threshold=meta.threshold,
        meta=meta,
        network=network,
        path=path,
        runtime=Runtime(
            engine="torch",
            version=torch.__version__,
            precision=precision,
            threads=threads,
            streams=streams,
            kernels="compiled" if kernels else "",
        ),
        reopen=partial(
            from_network,
            network,
            meta,
            device=str(where),
            precision=precision,
            streams=streams,
            threads=threads,
            path=path,
        ),
    )


def _no_features(images: Any) -> Any:
    raise ValueError("this network has no features: it needs a method pre_logits, images (B,C,H,W) -> (B,D)")
