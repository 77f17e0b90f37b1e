"""Table 1: the seven sizes, each built, counted and compared with the paper's."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import pair
from mlpmixer.models.architecture import count_params, create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.experiment import Lab
from mlpmixer.reproduce.page import Cells, Page, Plot

MIB = 2**20


@dataclass(frozen=True)
class Published:
    """A column of the paper's table 1."""

    layers: int
    patch_px: int
    hidden: int
    patches: int
    channels: int
    tokens: int
    params_millions: int
    """Without the classifier."""


#                      N   P   C     S    D_C   D_S  M
PAPER = {
    "S/32": Published(8, 32, 512, 49, 2048, 256, 19),
    "S/16": Published(8, 16, 512, 196, 2048, 256, 18),
    "B/32": Published(12, 32, 768, 49, 3072, 384, 60),
    "B/16": Published(12, 16, 768, 196, 3072, 384, 59),
    "L/32": Published(24, 32, 1024, 49, 4096, 512, 206),
    "L/16": Published(24, 16, 1024, 196, 4096, 512, 207),
    "H/14": Published(32, 14, 1280, 256, 5120, 640, 431),
}

HEADER = (
    *("size", "layers", "patch, px", "C", "S", "D_C", "D_S", "paper", "parameters"),
    *("with 1000 classes", "GFLOPs", "weights, MiB", "kept, MiB", "equal"),
)


def measured(cfg: MixerConfig) -> dict[str, int]:
    """Of the network as it is built, on torch's meta device, where nothing is computed: parameters, FLOPs and bytes of
    one image."""
    with torch.device("meta"):
        model, image = create_model(cfg), torch.zeros(1, cfg.in_channels, *pair(cfg.image_size))
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # by storage, so that what several operations keep is counted once

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in weights:
            kept[storage] = tensor
        return tensor

    with FlopCounterMode(display=False) as flops, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(image).sum()
    return {
        "params": count_params(model),
        "flops": flops.get_total_flops(),
        "kept_bytes": sum(t.untyped_storage().nbytes() for t in kept.values()),
    }


def row_of(name: str) -> dict[str, Any]:
    """A column of the paper's table and ours: what is configured, what is built, and whether the two agree."""
    paper, cfg = PAPER[name], MIXERS[name]
    ours = Published(
        cfg.num_blocks,
        pair(cfg.patch_size)[0],
        cfg.hidden_dim,
        cfg.num_patches,
        cfg.channels_mlp_dim,
        cfg.tokens_mlp_dim,
        round(measured(without_head(cfg))["params"] / 1e6),
    )
    built = measured(cfg)
    return {
        "size": name,
        "paper": vars(paper),
        "ours": vars(ours),
        "equal": ours == paper,
        "params_without_head": measured(without_head(cfg))["params"],
        **built,
        "as_configured": built["params"] == cfg.num_params
        and built["flops"] == sum(layer.flops for layer in cfg.layers()),
    }


def without_head(cfg: MixerConfig) -> MixerConfig:
    return cfg.adapted(num_classes=0)


def run(lab: Lab) -> Page:
    lab.parts = 1
    rows: list[dict[str, Any]] = lab.measure("sizes", lambda: [row_of(name) for name in PAPER])
    unequal = [row["size"] for row in rows if not row["equal"]]
    cells = tuple(
        (
            row["size"],
            *(str(row["ours"][key]) for key in ("layers", "patch_px", "hidden", "patches", "channels", "tokens")),
            f"{row['paper']['params_millions']} M",
            f"{row['params_without_head']:,}",
            f"{row['params']:,}",
            f"{row['flops'] / 1e9:.2f}",
            f"{4 * row['params'] / MIB:,.0f}",
            f"{row['kept_bytes'] / MIB:,.0f}",
            "yes" if row["equal"] else "NO",
        )
        for row in rows
    )
    finding = f"unlike the paper's: {', '.join(unequal)}." if unequal else "all seven are equal to the paper's."
    counted = all(row["as_configured"] for row in rows)
    return Page(
        claim="table 1 gives layers, widths, patches and parameters in millions, at 224 px and without the classifier.",
        findings=(
            f"Layers, widths, patches and parameters rounded to millions: {finding}",
            "What torch counts in the networks as they are built is "
            + ("" if counted else "NOT ")
            + "what `mlpmixer summary` works out from their configurations, parameters and FLOPs.",
        ),
        tables=(
            Cells(
                title="Table 1",
                header=HEADER,
                rows=cells,
            ),
        ),
        plots=(
            Plot(
                name="sizes", caption="Parameters and FLOPs of the seven sizes", draw=lambda figure: _draw(figure, rows)
            ),
        ),
        notes=(
            "Parameters are without the classifier, as in the paper; the next column has one for ImageNet-1k.",
            "GFLOPs: of the forward pass of one image at 224 px, 2 for each multiply-add, matrix products only.",
            "Memory is in float32: the weights, and what one image keeps from the forward to the backward pass of a "
            "training step. "
            "Gradients and Adam's moments are three times the weights.",
        ),
        figures=rows,
    )


def _draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="GFLOPs an image", ylabel="parameters, millions")
    axes.margins(x=0.1)  # room for the last name
    for row in rows:
        x, y = row["flops"] / 1e9, row["params_without_head"] / 1e6
        axes.plot([x], [y], "o", color="tab:blue")
        axes.plot([x], [row["paper"]["params_millions"]], "+", color="tab:red")
        axes.annotate(row["size"], (x, y), textcoords="offset points", xytext=(6, -3))
    axes.plot([], [], "o", color="tab:blue", label="built")
    axes.plot([], [], "+", color="tab:red", label="paper, rounded")
    axes.legend()
