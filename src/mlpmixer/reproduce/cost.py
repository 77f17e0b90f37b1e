"""What networks of one size cost as images grow: speed, FLOPs and memory from 49 to 3,136 patches, and with what
exponent they grow.

Letters: S patches (an image is cut into the same patches at every size), B images of a batch, C hidden_dim.
"""

import dataclasses
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mlpmixer.config import Config, pair
from mlpmixer.hardware import choose_device, choose_precision
from mlpmixer.models.architecture import Build, count_params
from mlpmixer.models.baselines import ViT
from mlpmixer.models.configs import MixerConfig, ResNetConfig, ViTConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.reproduce.comparison import Sized
from mlpmixer.reproduce.experiment import Lab, Scale
from mlpmixer.reproduce.page import Cells, Page, Plot

MIB = 2**20
SIDES = (7, 10, 14, 20, 28, 40, 56)  # patches on a side: 49 to 3,136 in all, twice as many from one to the next
OPERATORS = {"Mixer": "token mixing", "ViT": "attention"}


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Networks of one size, and how they are measured."""

    mixer: MixerConfig
    vit: ViTConfig
    resnet: ResNetConfig
    sides: tuple[int, ...] = SIDES
    batch_patches: int = 6272
    """Patches in a batch, so that a batch is as much work at every size: 128 images of 49, 2 of 3,136."""
    turns: int = 7
    """How often each row is measured, all rows one after the other in each turn."""
    least_s: float = 0.2
    """How long one measurement of a row lasts at least."""

    @property
    def networks(self) -> dict[str, Build]:
        return {"Mixer": Mixer, "ViT": Sized(of=self.vit), "ResNet": Sized(of=self.resnet)}

    def config(self, side: int) -> MixerConfig:
        return dataclasses.replace(self.mixer, image_size=side * pair(self.mixer.patch_size)[0])

    def batch(self, side: int) -> int:
        return max(self.batch_patches // side**2, 1)


SCALES: dict[Scale, Settings] = {
    "small": Settings(
        mixer=MixerConfig(
            image_size=56,
            patch_size=4,
            num_classes=10,
            num_blocks=4,
            hidden_dim=128,
            tokens_mlp_dim=64,
            channels_mlp_dim=512,
        ),
        vit=ViTConfig(patch_size=4, num_blocks=3, hidden_dim=128, num_heads=4, mlp_dim=512),
        resnet=ResNetConfig(depths=(1, 1, 1, 1), width=24, bottleneck=False, small_images=True),
    ),
    "full": Settings(  # S/16
        mixer=MixerConfig(num_blocks=8, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048),
        vit=ViTConfig(num_blocks=6, hidden_dim=512, num_heads=8, mlp_dim=2048),
        resnet=ResNetConfig(depths=(3, 4, 4, 3), bottleneck=False),
        batch_patches=4 * 6272,
        turns=9,
    ),
}


# --- what is measured ---------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, counts the bytes of all tensors that operations make and that are alive; `peak` is the most there were at
    once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, Tensor)
                and id(storage := tensor.untyped_storage()) not in given
                and storage not in self.known
            ):
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def _gone(self, num_bytes: int) -> None:
        self.now -= num_bytes


@dataclass
class Bench:
    """One network at one size, ready to be run."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    tokens: Tensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=self.images.device.type != "meta")

    def precision(self) -> AbstractContextManager[Any]:
        kind = self.images.device.type
        return (
            nullcontext() if kind == "meta" else torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32)
        )

    @torch.no_grad()
    def forward(self) -> None:
        """Logits of a batch."""
        self.answer(self.images)

    @torch.no_grad()
    def one_image(self) -> None:
        self.answer(self.images[:1])

    def answer(self, images: Tensor) -> None:
        if self.model.training:
            self.model.eval()
        with self.precision():
            self.model(images)

    def train(self) -> None:
        """One step: forward, loss, backward, AdamW."""
        if not self.model.training:
            self.model.train()
        with self.precision():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def mix(self, tokens: Tensor) -> Tensor:
        """The first half of a layer, which mixes patches: norm, operator, residual. Attention is with its four
        projections."""
        if isinstance(self.model, Mixer):
            return self.model.blocks[0].mix_tokens(tokens)  # type: ignore[operator, no-any-return]
        assert isinstance(self.model, ViT)
        layer = self.model.body.layers[0]
        mixed: Tensor = tokens + layer.attention(layer.layernorm_before(tokens))[0]
        return mixed

    @torch.no_grad()
    def mix_forward(self) -> None:
        with self.precision():
            self.mix(self.tokens)

    def mix_train(self) -> None:
        """Forward and backward."""
        with self.precision():
            mixed = self.mix(self.tokens.requires_grad_())
        mixed.backward(torch.ones_like(mixed))  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)
        self.tokens.grad = None

    @property
    def rows(self) -> dict[str, Callable[[], None]]:
        """What is timed."""
        whole = {"forward": self.forward, "train": self.train, "one image": self.one_image}
        return whole | (
            {"mixing forward": self.mix_forward, "mixing train": self.mix_train} if self.name in OPERATORS else {}
        )


def bench_of(settings: Settings, name: str, side: int, device: torch.device, dtype: torch.dtype) -> Bench:
    """Random weights on noise: what a network computes has no part in what it costs."""
    cfg, batch = settings.config(side), settings.batch(side)
    torch.manual_seed(0)
    with torch.device(device):
        model = settings.networks[name](cfg)
        images = torch.randn(batch, cfg.in_channels, *pair(cfg.image_size))
        labels = torch.arange(batch) % cfg.num_classes
        tokens = torch.randn(batch, side**2 + (name == "ViT"), cfg.hidden_dim)  # a ViT has a class token
    return Bench(name, model, images, labels, tokens, dtype)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], None], device: torch.device, least_s: float) -> float:
    """Of one call: the mean over as many as last `least_s`, after two that warm up."""
    function()
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    times = max(math.ceil(least_s / max(time.perf_counter() - start, 1e-6)), 1)
    start = time.perf_counter()
    for _ in range(times):
        function()
    wait(device)
    return (time.perf_counter() - start) / times


def turn(settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of every row once, "Mixer 7 forward" and so on, sizes and networks one after the other."""
    out = {}
    for side in settings.sides:
        for name in settings.networks:
            bench = bench_of(settings, name, side, device, dtype)
            for row, function in bench.rows.items():
                out[f"{name} {side} {row}"] = seconds(function, device, settings.least_s)
    return out


def peak_mib(function: Callable[[], None], bench: Bench) -> float:
    """Most memory of tensors at once while `function` runs, the weights and what was there before included."""
    device = bench.images.device
    function()  # what stays, such as moments, is there from now on
    state = [t for s in bench.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    there = sum(t.nbytes for t in (*bench.model.parameters(), *bench.model.buffers(), *state, bench.images))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        wait(device)
        return (torch.cuda.max_memory_allocated(device) - before + there) / MIB
    with Alive() as alive:
        function()
    peak: float = (alive.peak + there) / MIB
    return peak


def sizes(settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Of "Mixer 7" and so on: parameters, FLOPs of one image by torch's count, memory of a batch."""
    out: dict[str, dict[str, float]] = {}
    for side in settings.sides:
        for name in settings.networks:
            bench, planned = (bench_of(settings, name, side, d, dtype) for d in (device, torch.device("meta")))
            counts: dict[str, float] = {"params": count_params(bench.model), "batch": settings.batch(side)}
            for row in ("one image", "mixing forward"):
                if row in planned.rows:
                    with FlopCounterMode(display=False) as flops:
                        planned.rows[row]()
                    images = 1 if row == "one image" else settings.batch(side)
                    counts[f"{row} flops"] = flops.get_total_flops() / images
            counts |= {f"{row} mib": peak_mib(bench.rows[row], bench) for row in ("forward", "train")}
            out[f"{name} {side}"] = counts
    return out


# --- what is made of it -------------------------------------------------------------------------------------------


def exponent(patches: list[int], values: list[float]) -> float:
    """k of the power law c S^k that fits best, by least squares of logarithms."""
    return float(np.polyfit(np.log(patches), np.log(values), 1)[0])


def run(lab: Lab) -> Page:
    settings = SCALES[lab.scale]
    device = choose_device(lab.device)
    dtype = choose_precision("auto", device)
    lab.parts = 1 + settings.turns
    counted: dict[str, dict[str, float]] = lab.measure("sizes", lambda: sizes(settings, device, dtype))
    turns: list[dict[str, float]] = [
        lab.measure(f"turn-{number}", lambda: turn(settings, device, dtype)) for number in range(1, settings.turns + 1)
    ]
    least = {row: min(t[row] for t in turns) for row in turns[0]}
    spread = statistics.median(statistics.median(t[row] for t in turns) / least[row] for row in least)
    return page_of(settings, counted, least, spread, str(dtype).removeprefix("torch."))


def page_of(
    settings: Settings, counted: dict[str, dict[str, float]], least: dict[str, float], spread: float, precision: str
) -> Page:
    """The page, from counts and the least seconds of each row."""
    sides, patches = settings.sides, [side**2 for side in settings.sides]

    def per_image(name: str, row: str) -> list[float]:
        return [least[f"{name} {side} {row}"] / (1 if row == "one image" else settings.batch(side)) for side in sides]

    def flops(name: str, row: str) -> list[float]:
        return [counted[f"{name} {side}"][f"{row} flops"] for side in sides]

    curves = {f"{name}, {row}": per_image(name, row) for name in settings.networks for row in ("forward", "train")}
    curves |= {
        f"{OPERATORS[name]}, {row}": per_image(name, f"mixing {row}")
        for name in OPERATORS
        for row in ("forward", "train")
    }
    counts = {name: flops(name, "one image") for name in settings.networks}
    counts |= {OPERATORS[name]: flops(name, "mixing forward") for name in OPERATORS}
    fits = {
        what: {"all": exponent(patches, values), "last_octave": exponent(patches[-2:], values[-2:])}
        for what, values in curves.items()
    }
    of_flops = {
        what: {"all": exponent(patches, values), "last_octave": exponent(patches[-2:], values[-2:])}
        for what, values in counts.items()
    }
    blocks = {"Mixer": settings.mixer.num_blocks, "ViT": settings.vit.num_blocks}
    shares = {
        name: {
            "time": [
                blocks[name] * m / w
                for m, w in zip(per_image(name, "mixing forward"), per_image(name, "forward"), strict=True)
            ],
            "flops": [blocks[name] * m / w for m, w in zip(counts[OPERATORS[name]], counts[name], strict=True)],
        }
        for name in OPERATORS
    }
    quadratic = [  # scores and weighted sums: 2 S^2 C multiply-adds in a block
        4 * blocks["ViT"] * (s + 1) ** 2 * settings.vit.hidden_dim / f
        for s, f in zip(patches, counts["ViT"], strict=True)
    ]
    ratio = [v / m for v, m in zip(curves["ViT, forward"], curves["Mixer, forward"], strict=True)]
    low, high = patches[-2], patches[-1]
    octave = ", ".join(f"{name} {fits[f'{name}, forward']['last_octave']:.2f}" for name in settings.networks)
    steps = ", ".join(f"{name} {fits[f'{name}, train']['last_octave']:.2f}" for name in settings.networks)
    base = min(sides, key=lambda side: abs(side - 14))
    return Page(
        claim=(
            "a Mixer's cost is linear in the number of patches, since the width of its token mixing is chosen apart "
            "from it, where a ViT's "
            "is quadratic. No exponent is given there."
        ),
        findings=(
            f"Forward, whole network, from {low:,} to {high:,} patches, time grows with the exponent: {octave}. "
            f"Over all sizes: "
            f"{', '.join(f'{name} ' + format(fits[f'{name}, forward']['all'], '.2f') for name in settings.networks)}.",
            f"A training step, from {low:,} to {high:,} patches: {steps}.",
            f"The operator alone, forward, from {low:,} to {high:,}: token mixing "
            f"{fits['token mixing, forward']['last_octave']:.2f}, "
            f"attention with its projections {fits['attention, forward']['last_octave']:.2f}; in FLOPs "
            f"{of_flops['token mixing']['last_octave']:.2f} and {of_flops['attention']['last_octave']:.2f}.",
            f"What grows with the square of S is a small part of a ViT at small S: {100 * quadratic[0]:.1f} % of its "
            f"FLOPs at "
            f"{patches[0]} patches, {100 * quadratic[-1]:.1f} % at {patches[-1]:,}. Attention with its linear "
            f"projections takes "
            f"{100 * shares['ViT']['time'][0]:.0f} % and {100 * shares['ViT']['time'][-1]:.0f} % of its time.",
            f"Forward, a ViT takes {ratio[0]:.2f} times the Mixer's time at {patches[0]} patches and {ratio[-1]:.2f} "
            f"times at "
            f"{patches[-1]:,}.",
        ),
        tables=(_exponents(fits, of_flops), *_sizes(settings, counted, least), _shares(patches, shares, quadratic)),
        plots=(
            Plot(
                name="time",
                caption="Seconds an image over patches; dashed: the operator alone, of one layer",
                draw=_drawing(patches, curves),
                size=(9, 4),
            ),
        ),
        notes=(
            f"Equal parameters at {base**2} patches: "
            + ", ".join(f"{name} {counted[f'{name} {base}']['params']:,.0f}" for name in settings.networks)
            + f". Mixer {_short(settings.mixer)}; {settings.vit}; {settings.resnet}, all on images of so many patches of "
            f"{pair(settings.mixer.patch_size)[0]} px, for {settings.mixer.num_classes} classes.",
            f"Images of noise, {settings.batch_patches:,} patches in a batch at every size, {precision}, torch's own "
            f"operations for all "
            "three (no compiled kernels, no torch.compile); attention is torch's fused one.",
            "A training step is forward, loss, backward and AdamW. The operator is the first half of a layer, with "
            "norm and residual: of a "
            "Mixer token mixing, of a ViT attention with its four projections; its training figure is forward and "
            "backward.",
            f"Each figure is the least of {settings.turns} turns, all rows one after the other in each turn; the "
            f"median turn took "
            f"{spread:.2f} times as long. Latency is one image by itself.",
            "FLOPs are torch's count of matrix products and convolutions, 2 for each multiply-add. Peak MiB: tensors "
            "alive at once in a "
            "batch, weights, gradients and moments included; on a CPU without what single operations use inside.",
        ),
        figures={
            "patches": patches,
            "seconds_per_image": curves,
            "latency_s": {name: per_image(name, "one image") for name in settings.networks},
            "flops_per_image": counts,
            "exponents": fits,
            "flops_exponents": of_flops,
            "shares": shares,
            "quadratic_share_of_vit_flops": quadratic,
            "counted": counted,
            "precision": precision,
            "median_over_least": spread,
        },
    )


def _short(cfg: MixerConfig) -> str:
    return (
        f"(num_blocks={cfg.num_blocks}, hidden_dim={cfg.hidden_dim}, tokens_mlp_dim={cfg.tokens_mlp_dim}, "
        f"channels_mlp_dim={cfg.channels_mlp_dim})"
    )


def _exponents(fits: dict[str, dict[str, float]], of_flops: dict[str, dict[str, float]]) -> Cells:
    rows = []
    for what, fit in fits.items():
        name, _, row = what.partition(", ")
        counts = of_flops[name] if row == "forward" else None
        rows.append(
            (
                what,
                f"{fit['all']:.2f}",
                f"{fit['last_octave']:.2f}",
                f"{counts['all']:.2f}" if counts else "",
                f"{counts['last_octave']:.2f}" if counts else "",
            )
        )
    return Cells(
        title="Exponent of cost over the number of patches",
        header=("", "time, all sizes", "time, last octave", "FLOPs, all sizes", "FLOPs, last octave"),
        rows=tuple(rows),
    )


def _sizes(settings: Settings, counted: dict[str, dict[str, float]], least: dict[str, float]) -> Iterator[Cells]:
    for name in settings.networks:
        rows = []
        for side in settings.sides:
            counts, batch = counted[f"{name} {side}"], settings.batch(side)
            rows.append(
                (
                    f"{side**2:,}",
                    f"{pair(settings.config(side).image_size)[0]}",
                    f"{counts['params']:,.0f}",
                    f"{counts['one image flops'] / 1e9:.3f}",
                    f"{batch / least[f'{name} {side} forward']:,.1f}",
                    f"{batch / least[f'{name} {side} train']:,.1f}",
                    f"{1000 * least[f'{name} {side} one image']:.2f}",
                    f"{batch:,}",
                    f"{counts['forward mib']:,.0f}",
                    f"{counts['train mib']:,.0f}",
                )
            )
        header = (
            *("patches", "image, px", "parameters", "GFLOPs", "images/s forward", "images/s training", "latency, ms"),
            *("batch", "forward, peak MiB", "training, peak MiB"),
        )
        yield Cells(title=name, header=header, rows=tuple(rows))


def _shares(patches: list[int], shares: dict[str, dict[str, list[float]]], quadratic: list[float]) -> Cells:
    columns = [
        shares["Mixer"]["time"],
        shares["Mixer"]["flops"],
        shares["ViT"]["time"],
        shares["ViT"]["flops"],
        quadratic,
    ]
    rows = tuple((f"{s:,}", *(f"{100 * c[i]:.1f} %" for c in columns)) for i, s in enumerate(patches))
    return Cells(
        title="Share of the mixing operator in the whole network, forward",
        header=("patches", "token mixing: time", "FLOPs", "attention: time", "FLOPs", "of it quadratic in S: FLOPs"),
        rows=rows,
    )


def _drawing(patches: list[int], curves: dict[str, list[float]]) -> Callable[[Any], None]:
    colours = {
        "Mixer": "tab:blue",
        "ViT": "tab:orange",
        "ResNet": "tab:green",
        "token mixing": "tab:blue",
        "attention": "tab:orange",
    }

    def draw(figure: Any) -> None:
        for column, row in enumerate(("forward", "train"), 1):
            axes = figure.add_subplot(1, 2, column, xscale="log", yscale="log", xlabel="patches", title=row)
            for what, values in curves.items():
                name, _, which = what.partition(", ")
                if which == row:
                    style = "--" if name in OPERATORS.values() else "-"
                    axes.plot(patches, values, style, marker="o", markersize=3, color=colours[name], label=name)
            axes.set_ylabel("seconds an image")
            axes.legend(fontsize="small")

    return draw
