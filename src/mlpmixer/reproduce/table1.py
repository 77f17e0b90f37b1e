"""Table 1: the seven sizes, each built, counted and compared with the paper's."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import pair
from mlpmixer.models.architecture import build, count_params
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.experiment import ExperimentContext
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table

MIB = 2**20


class Size(NamedTuple):
    """A column of the paper's table 1."""

    layers: int
    patch_px: int
    hidden: int
    patches: int
    channels: int
    tokens: int
    params_millions: int  # without the classifier


PAPER = {  #     N   P   C     S    D_C   D_S  M
    "S/32": Size(8, 32, 512, 49, 2048, 256, 19),
    "S/16": Size(8, 16, 512, 196, 2048, 256, 18),
    "B/32": Size(12, 32, 768, 49, 3072, 384, 60),
    "B/16": Size(12, 16, 768, 196, 3072, 384, 59),
    "L/32": Size(24, 32, 1024, 49, 4096, 512, 206),
    "L/16": Size(24, 16, 1024, 196, 4096, 512, 207),
    "H/14": Size(32, 14, 1280, 256, 5120, 640, 431),
}


def measured(cfg: MixerConfig) -> dict[str, int]:
    """Parameters of the network as built, FLOPs and bytes of one image, all on the meta device, where nothing runs."""
    with torch.device("meta"):
        model, image = build(cfg), torch.zeros(1, cfg.in_channels, *pair(cfg.image_size))
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, Tensor] = {}  # by storage, so that what several operations keep is counted once

    def save(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in weights:
            saved[storage] = tensor
        return tensor

    with FlopCounterMode(display=False) as flops, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(image).sum()
    kept_bytes = sum(t.untyped_storage().nbytes() for t in saved.values())
    return {"params": count_params(model), "flops": flops.get_total_flops(), "kept_bytes": kept_bytes}


def compare_size(name: str) -> dict[str, Any]:
    """A column of the paper's table beside what is configured and what is built."""
    paper, cfg = PAPER[name], MIXERS[name]
    built = measured(cfg)
    with torch.device("meta"):
        params = count_params(build(without_head(cfg)))
    widths = (cfg.hidden_dim, cfg.num_patches, cfg.channels_mlp_dim, cfg.tokens_mlp_dim)
    ours = Size(cfg.num_blocks, pair(cfg.patch_size)[0], *widths, round(params / 1e6))
    configured = cfg.num_params, sum(layer.flops for layer in cfg.layers())
    return {
        "size": name,
        "paper": paper._asdict(),
        "ours": ours._asdict(),
        "equal": ours == paper,
        "params_without_head": params,
        **built,
        "as_configured": (built["params"], built["flops"]) == configured,
    }


def without_head(cfg: MixerConfig) -> MixerConfig:
    return cfg.adapted(num_classes=0)


def count_sizes(context: ExperimentContext) -> Page:
    context.num_parts = 1
    sizes: list[dict[str, Any]] = context.measure("sizes", lambda: [compare_size(name) for name in PAPER])
    unequal = [size["size"] for size in sizes if not size["equal"]]
    finding = f"unlike the paper's: {', '.join(unequal)}." if unequal else "all seven are equal to the paper's."
    counted = "" if all(size["as_configured"] for size in sizes) else "NOT "
    rows = [
        {
            "size": size["size"],
            "layers": size["ours"]["layers"],
            "patch, px": size["ours"]["patch_px"],
            "C": size["ours"]["hidden"],
            "S": size["ours"]["patches"],
            "D_C": size["ours"]["channels"],
            "D_S": size["ours"]["tokens"],
            "paper": f"{size['paper']['params_millions']} M",
            "parameters": f"{size['params_without_head']:,}",
            "with 1000 classes": f"{size['params']:,}",
            "GFLOPs": f"{size['flops'] / 1e9:.2f}",
            "weights, MiB": f"{4 * size['params'] / MIB:,.0f}",
            "activations, MiB": f"{size['kept_bytes'] / MIB:,.0f}",
            "equal": "yes" if size["equal"] else "NO",
        }
        for size in sizes
    ]
    built = [(size["flops"] / 1e9, size["params_without_head"] / 1e6) for size in sizes]
    paper = [(x, size["paper"]["params_millions"]) for (x, _), size in zip(built, sizes, strict=True)]
    series = [
        Series(built, "built", "o", "tab:blue", names=[size["size"] for size in sizes]),
        Series(paper, "paper, rounded", "+", "tab:red"),
    ]
    panel = Panel("GFLOPs an image", "parameters, millions", series, log="xy")
    return Page(
        template="table1.md",
        findings=(
            f"Layers, widths, patches and parameters rounded to millions: {finding}",
            f"Parameters and FLOPs that torch counts in the networks as built are {counted}those that `mlpmixer "
            "summary` works out from their configurations.",
        ),
        tables=(make_table("Table 1", rows),),
        plots=(Plot("sizes", "Parameters and FLOPs of the seven sizes", [panel], size=(6.4, 4)),),
        figures=sizes,
    )
