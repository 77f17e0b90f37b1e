"""The cost of networks of one size as images grow: speed, FLOPs and memory from 49 to 3,136 patches, and exponents.

Letters: S patches (an image is cut into the same patches at every size), B images of a batch, C hidden_dim.
"""

import dataclasses
import math
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import Config, pair
from mlpmixer.hardware import choose_device, choose_precision
from mlpmixer.models.architecture import build, configured, count_params
from mlpmixer.models.configs import MixerConfig, NetworkConfig, ResNetConfig, ViTConfig
from mlpmixer.reproduce.comparison import COLOURS
from mlpmixer.reproduce.experiment import ExperimentContext, Scale
from mlpmixer.reproduce.page import Page, Panel, Plot, Series, make_table, percent

MIB = 2**20
SIDES = (7, 10, 14, 20, 28, 40, 56)  # patches on a side: 49 to 3,136 in all, twice as many from one to the next
NETWORKS = ("Mixer", "ViT", "ResNet")
OPERATORS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {  # the first half of a layer, which mixes patches
    "Mixer": ("token mixing", lambda mixer, x: mixer.blocks[0].mix_tokens(x)),
    "ViT": ("attention", lambda vit, x: _attend(vit.body.layers[0], x)),
}


def _attend(layer: Any, x: Tensor) -> Tensor:
    """Norm, attention with its four projections, residual."""
    mixed: Tensor = x + layer.attention(layer.layernorm_before(x))[0]
    return mixed


@dataclass(frozen=True, kw_only=True)
class CostSettings(Config):
    """Networks of one size, and how they are measured."""

    mixer: MixerConfig
    vit: ViTConfig
    resnet: ResNetConfig
    sides: tuple[int, ...] = SIDES
    batch_patches: int = 6272
    """Patches in a batch, so that a batch is as much work at every size: 128 images of 49, 2 of 3,136."""
    turns: int = 7
    """How often each operation is measured; a turn measures all of them, one after the other."""
    least_s: float = 0.2
    """The least duration of one measurement."""

    def networks(self, side: int) -> dict[str, NetworkConfig]:
        """The networks for images of so many patches on a side."""
        size, classes = side * self.mixer.cell[0], self.mixer.num_classes
        networks = {"Mixer": self.mixer, "ViT": self.vit, "ResNet": self.resnet}
        return {name: configured(cfg, image_size=size, num_classes=classes) for name, cfg in networks.items()}

    def batch(self, side: int) -> int:
        return max(self.batch_patches // side**2, 1)


_SMALL = MixerConfig(image_size=56, patch_size=4, num_classes=10, num_blocks=4, hidden_dim=128)
SCALES: dict[Scale, CostSettings] = {
    "small": CostSettings(
        mixer=dataclasses.replace(_SMALL, tokens_mlp_dim=64, channels_mlp_dim=512),
        vit=ViTConfig(patch_size=4, num_blocks=3, hidden_dim=128, num_heads=4, mlp_dim=512),
        resnet=ResNetConfig(depths=(1, 1, 1, 1), width=24, bottleneck=False, small_images=True),
    ),
    "full": CostSettings(  # S/16
        mixer=MixerConfig(num_blocks=8, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048),
        vit=ViTConfig(num_blocks=6, hidden_dim=512, num_heads=8, mlp_dim=2048),
        resnet=ResNetConfig(depths=(3, 4, 4, 3), bottleneck=False),
        batch_patches=4 * 6272,
        turns=9,
    ),
}


# --- measuring ----------------------------------------------------------------------------------------------------


class Bench:
    """One network at one size, ready to run on noise: what a network computes has no influence on what it costs."""

    def __init__(self, settings: CostSettings, name: str, side: int, device: torch.device, dtype: torch.dtype) -> None:
        cfg, batch = settings.networks(side)[name], settings.batch(side)
        self.name, self.device, self.dtype = name, device, dtype
        torch.manual_seed(0)
        with torch.device(device):
            self.model = build(cfg)
            self.images = torch.randn(batch, cfg.in_channels, *pair(cfg.image_size))
            self.labels = torch.arange(batch) % cfg.num_classes
            # (B, S, C), and a class token in a ViT
            self.tokens = torch.randn(batch, side**2 + (name == "ViT"), settings.mixer.hidden_dim)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=device.type != "meta")

    @property
    def operations(self) -> dict[str, Callable[[], None]]:
        """Functions to measure, by name."""
        whole = {"forward": self.forward, "train": self.train, "one image": lambda: self.forward(1)}
        mixing = {"mixing forward": self.mix_forward, "mixing train": self.mix_train}
        return whole | (mixing if self.name in OPERATORS else {})

    def precision(self) -> AbstractContextManager[Any]:
        if self.device.type == "meta":
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def forward(self, images: int | None = None) -> None:
        if self.model.training:
            self.model.eval()
        with self.precision():
            self.model(self.images[:images])

    def train(self) -> None:
        """One step: forward, loss, backward, AdamW."""
        if not self.model.training:
            self.model.train()
        with self.precision():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def mix_forward(self) -> None:
        with self.precision():
            OPERATORS[self.name][1](self.model, self.tokens)

    def mix_train(self) -> None:
        """Forward and backward."""
        with self.precision():
            mixed = OPERATORS[self.name][1](self.model, self.tokens.requires_grad_())
        mixed.backward(torch.ones_like(mixed))  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)
        self.tokens.grad = None

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, operation: str, least_s: float) -> float:
        """The mean time of as many calls as last `least_s`, after two that warm up."""
        function, times = self.operations[operation], 1
        function()
        self.wait()
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(times):
                function()
            self.wait()
            taken = (time.perf_counter() - start) / times
            times = max(math.ceil(least_s / max(taken, 1e-6)), 1)
        return taken

    def peak_mib(self, operation: str) -> float:
        """Most memory of tensors at once during an operation, weights, moments and images included."""
        function = self.operations[operation]
        function()  # what stays, such as moments, is there from now on
        state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        held = sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers(), *state, self.images))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            function()
            self.wait()
            return (torch.cuda.max_memory_allocated(self.device) - before + held) / MIB
        with LiveMemory() as memory:
            function()
        peak: float = (memory.peak + held) / MIB
        return peak


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations within make and that are alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for storage in [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)]:
            if id(storage) not in given and storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes


def time_all(settings: CostSettings, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """One turn: seconds of every operation, "Mixer 7 forward" and so on."""
    found: dict[str, float] = {}
    for side in settings.sides:
        for name in NETWORKS:
            bench = Bench(settings, name, side, device, dtype)
            found |= {f"{name} {side} {o}": bench.seconds(o, settings.least_s) for o in bench.operations}
    return found


def count_all(settings: CostSettings, device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Parameters, FLOPs of one image as torch counts them, and memory of a batch, for "Mixer 7" and so on."""
    found: dict[str, dict[str, float]] = {}
    for side in settings.sides:
        batch = settings.batch(side)
        for name in NETWORKS:
            bench = Bench(settings, name, side, device, dtype)
            planned = Bench(settings, name, side, torch.device("meta"), dtype).operations
            counts: dict[str, float] = {"params": count_params(bench.model), "batch": batch}
            for operation, images in {"one image": 1, "mixing forward": batch}.items():
                if operation in planned:
                    with FlopCounterMode(display=False) as flops:
                        planned[operation]()
                    counts[f"{operation} flops"] = flops.get_total_flops() / images
            counts |= {f"{operation} mib": bench.peak_mib(operation) for operation in ("forward", "train")}
            found[f"{name} {side}"] = counts
    return found


def measure_cost(context: ExperimentContext) -> Page:
    settings = SCALES[context.scale]
    device = choose_device(context.device)
    dtype = choose_precision("auto", device)
    context.num_parts = 1 + settings.turns
    counted = context.measure("sizes", lambda: count_all(settings, device, dtype))
    numbers = range(1, settings.turns + 1)
    turns = [context.measure(f"turn-{i}", lambda: time_all(settings, device, dtype)) for i in numbers]
    least = {key: min(turn[key] for turn in turns) for key in turns[0]}
    spread = median(median(turn[key] for turn in turns) / least[key] for key in least)
    return make_page(settings, counted, least, spread, str(dtype).removeprefix("torch."))


# --- the page -----------------------------------------------------------------------------------------------------


def exponent(patches: list[int], values: list[float]) -> float:
    """k of the power law c S^k that fits best, by least squares of logarithms."""
    return float(np.polyfit(np.log(patches), np.log(values), 1)[0])


def make_page(
    settings: CostSettings, counted: dict[str, dict[str, float]], least: dict[str, float], spread: float, precision: str
) -> Page:
    """The page, from counts and the least seconds of each operation."""
    sides, networks = settings.sides, NETWORKS
    patches = [side**2 for side in sides]
    low, high = patches[-2], patches[-1]

    def fit(values: list[float]) -> dict[str, float]:
        return {"all": exponent(patches, values), "last_octave": exponent(patches[-2:], values[-2:])}

    # "Mixer", ..., "token mixing", "attention" -> the network and the prefix of its operations
    parts = {name: (name, "") for name in networks} | {word: (n, "mixing ") for n, (word, _) in OPERATORS.items()}
    curves = {
        f"{what}, {row}": [least[f"{name} {side} {prefix}{row}"] / settings.batch(side) for side in sides]
        for what, (name, prefix) in parts.items()
        for row in ("forward", "train")
    }
    flops = {
        what: [counted[f"{name} {side}"]["mixing forward flops" if prefix else "one image flops"] for side in sides]
        for what, (name, prefix) in parts.items()
    }
    fits, flop_fits = ({what: fit(values) for what, values in found.items()} for found in (curves, flops))
    latency = {name: [least[f"{name} {side} one image"] for side in sides] for name in networks}
    blocks = {"Mixer": settings.mixer.num_blocks, "ViT": settings.vit.num_blocks}

    def ratio(above: list[float], below: list[float], times: float = 1.0) -> list[float]:
        return [times * a / b for a, b in zip(above, below, strict=True)]

    shares = {
        name: {
            "time": ratio(curves[f"{operator}, forward"], curves[f"{name}, forward"], blocks[name]),
            "flops": ratio(flops[operator], flops[name], blocks[name]),
        }
        for name, (operator, _) in OPERATORS.items()
    }
    # scores and weighted sums: 2 S^2 C multiply-adds in a block
    squares = [4.0 * blocks["ViT"] * (s + 1) ** 2 * settings.vit.hidden_dim for s in patches]
    quadratic = ratio(squares, flops["ViT"])
    vit_over_mixer = ratio(curves["ViT, forward"], curves["Mixer, forward"])

    last = {what: f"{fit['last_octave']:.2f}" for what, fit in (fits | flop_fits).items()}
    forward, train = (
        ", ".join(f"{name} {last[f'{name}, {row}']}" for name in networks) for row in ("forward", "train")
    )
    forward_all = ", ".join(f"{name} {fits[f'{name}, forward']['all']:.2f}" for name in networks)
    base = min(sides, key=lambda side: abs(side - 14))
    params = {name: counted[f"{name} {base}"]["params"] for name in networks}
    panels = []
    for row in ("forward", "train"):
        points = {what: list(zip(patches, curves[f"{what}, {row}"], strict=True)) for what in parts}
        series = [
            Series(points[what], what, "--o" if prefix else "-o", COLOURS[name])
            for what, (name, prefix) in parts.items()
        ]
        panels.append(Panel("patches", "seconds an image", series, row, log="xy"))
    vit_time = shares["ViT"]["time"]
    return Page(
        template="cost.md",
        values={"settings": settings, "side": base, "params": params, "precision": precision, "spread": spread},
        findings=(
            f"Forward, whole network, from {low:,} to {high:,} patches, time grows with the exponent: "
            f"{forward}. Over all sizes: {forward_all}.",
            f"A training step, from {low:,} to {high:,} patches: {train}.",
            f"The operator alone, forward, from {low:,} to {high:,}: token mixing {last['token mixing, forward']}, "
            f"attention with its projections {last['attention, forward']}; in FLOPs {last['token mixing']} and "
            f"{last['attention']}.",
            f"What grows with the square of S is a small part of a ViT at small S: {percent(quadratic[0])} of its "
            f"FLOPs at {patches[0]} patches, {percent(quadratic[-1])} at {high:,}. Attention with its linear "
            f"projections takes {percent(vit_time[0], 0)} and {percent(vit_time[-1], 0)} of its time.",
            f"Forward, a ViT takes {vit_over_mixer[0]:.2f} times the Mixer's time at {patches[0]} patches and "
            f"{vit_over_mixer[-1]:.2f} times at {high:,}.",
        ),
        tables=(
            make_table(
                "Exponent of cost over the number of patches",
                [
                    {
                        "": what,
                        "time, all sizes": f"{fit['all']:.2f}",
                        "time, last octave": f"{fit['last_octave']:.2f}",
                        "FLOPs, all sizes": f"{flop_fits[name]['all']:.2f}" if row == "forward" else "",
                        "FLOPs, last octave": f"{flop_fits[name]['last_octave']:.2f}" if row == "forward" else "",
                    }
                    for what, fit in fits.items()
                    for name, row in [what.split(", ")]
                ],
            ),
            *(
                make_table(
                    name,
                    [
                        {
                            "patches": f"{side**2:,}",
                            "image, px": side * settings.mixer.cell[0],
                            "parameters": f"{counted[f'{name} {side}']['params']:,.0f}",
                            "GFLOPs": f"{flops[name][i] / 1e9:.3f}",
                            "images/s forward": f"{1 / curves[f'{name}, forward'][i]:,.1f}",
                            "images/s training": f"{1 / curves[f'{name}, train'][i]:,.1f}",
                            "latency, ms": f"{1000 * latency[name][i]:.2f}",
                            "batch": f"{settings.batch(side):,}",
                            "forward, peak MiB": f"{counted[f'{name} {side}']['forward mib']:,.0f}",
                            "training, peak MiB": f"{counted[f'{name} {side}']['train mib']:,.0f}",
                        }
                        for i, side in enumerate(sides)
                    ],
                )
                for name in networks
            ),
            make_table(
                "Share of the mixing operator in the whole network, forward",
                [
                    {
                        "patches": f"{s:,}",
                        "token mixing: time": percent(shares["Mixer"]["time"][i]),
                        "token mixing: FLOPs": percent(shares["Mixer"]["flops"][i]),
                        "attention: time": percent(vit_time[i]),
                        "attention: FLOPs": percent(shares["ViT"]["flops"][i]),
                        "quadratic in S: FLOPs": percent(quadratic[i]),
                    }
                    for i, s in enumerate(patches)
                ],
            ),
        ),
        plots=(Plot("time", "Seconds an image over patches; dashed: the operator alone, of one layer", panels),),
        figures={
            "patches": patches,
            "seconds_per_image": curves,
            "latency_s": latency,
            "flops_per_image": flops,
            "exponents": fits,
            "flops_exponents": flop_fits,
            "shares": shares,
            "quadratic_share_of_vit_flops": quadratic,
            "counted": counted,
            "precision": precision,
            "median_over_least": spread,
        },
    )
