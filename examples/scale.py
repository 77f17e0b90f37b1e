"""Estimate what a training run takes: python examples/scale.py --model L/16 --images 14e6 --epochs 300 --gpus 8 16

It computes from the architecture and the assumptions below, each of which is an option; docs/how-to/scale.md explains
the tables. No torch is needed.

S, C, DS, DC, N, P as in the paper: patches, channels, hidden widths of token and channel mixing, blocks, values of a
patch; K classes.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass

from mlpmixer.cli.arguments import Command, read
from mlpmixer.cli.help import page
from mlpmixer.config import pair
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.names import MIXERS


@dataclass(frozen=True, kw_only=True)
class Plan(Command):
    """The run, and assumptions about the machines."""

    model: str = "H/14"
    """A name of `mlpmixer list models`."""
    images: float = 300e6
    """Images in the training set."""
    epochs: float = 14
    """Passes over the training set (the paper's table 4)."""
    batch: int = 4096
    """Images per step, all GPUs together (the paper, section 3)."""
    gpus: tuple[int, ...] = (8, 64, 256)
    """Numbers of GPUs to compute times for."""
    gpus_per_node: int = 8
    """GPUs in one machine."""
    matrix_tflops: float = 790
    """TFLOP/s of a GPU in large bfloat16 products; 989 is the nominal rate of H100 and H200."""
    share: float = 0.55
    """Share of that rate that forward and backward passes reach."""
    low_share: float = 0.40
    """The same in a pessimistic case."""
    memory_tb_s: float = 3.0
    """Memory bandwidth of a GPU in the optimizer step, in TB/s."""
    node_gb_s: float = 320
    """Bandwidth between machines in each direction, in GB/s: eight adapters of 400 Gb/s at 80 %."""
    slow_gb_s: float = 40
    """The same with a single adapter."""
    nvlink_gb_s: float = 360
    """Bandwidth between the GPUs of a machine, in GB/s: 450 GB/s at 80 %."""
    gpu_gb: tuple[float, ...] = (80, 141)
    """Memory of a GPU in GB: H100, H200."""
    reserve_gb: float = 8
    """GB of it for CUDA, NCCL, workspaces and what the allocator cannot use."""
    image_kb: float = 67
    """Size of a stored image in kB."""
    decoded_per_core: float = 400
    """Images per second that a core decodes and resizes to 224 px."""
    per_shard: int = 10_000
    """Images in a shard."""
    buffer: int = 1 << 20
    """Images in memory on all machines together (--data.buffer)."""
    write_gb_s: float = 1.0
    """Speed of writing checkpoints, in GB/s."""
    save_every_s: float = 1800
    """Seconds between checkpoints."""
    price: float = 3.0
    """Dollars per GPU hour."""
    gpu_kw: float = 1.3
    """Power per GPU in kW, with its share of the machine, network and cooling."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            values = value if isinstance(value, tuple) else (value,)
            if name != "model" and not (values and all(v > 0 for v in values)):
                raise ValueError(f"{name} must be positive, got {value}")


# --- the network ----------------------------------------------------------------------------------------------------


def forward_flops(cfg: MixerConfig) -> int:
    """FLOPs of one image, 2 for each multiply-add: stem, N blocks, head. A backward pass costs twice as much."""
    s, c, p = cfg.num_patches, cfg.hidden_dim, patch_values(cfg)
    block = 4 * s * c * cfg.tokens_mlp_dim + 4 * s * c * cfg.channels_mlp_dim
    return 2 * s * p * c + cfg.num_blocks * block + 2 * c * cfg.num_classes


def training_flops(model: str) -> int:
    return 3 * forward_flops(MIXERS[model])


def patch_values(cfg: MixerConfig) -> int:
    rows, columns = pair(cfg.patch_size)
    return cfg.in_channels * rows * columns


def block_bytes(cfg: MixerConfig, norm_bytes: int = 4) -> int:
    """Bytes that autograd keeps of one image in one block, under bfloat16 autocast.

    Both norms: input (`norm_bytes` a value: autocast makes it float32 on CUDA, leaves it bfloat16 on a CPU), mean and
    deviation; both MLPs: input, hidden values before and after GELU.
    """
    x, t, h = (
        cfg.num_patches * cfg.hidden_dim,
        cfg.hidden_dim * cfg.tokens_mlp_dim,
        cfg.num_patches * cfg.channels_mlp_dim,
    )
    return 2 * (norm_bytes * x + 8 * cfg.num_patches) + 2 * (x + 2 * t) + 2 * (x + 2 * h)


def kept_bytes(cfg: MixerConfig, norm_bytes: int = 4, checkpointing: bool = False) -> int:
    """Bytes kept of one image until the backward pass: patches, blocks (checkpointed: their bfloat16 inputs), last
    norm, head, logits."""
    s, x = cfg.num_patches, cfg.num_patches * cfg.hidden_dim
    blocks = cfg.num_blocks * (2 * x if checkpointing else block_bytes(cfg, norm_bytes))
    return 2 * s * patch_values(cfg) + blocks + norm_bytes * x + 8 * s + 2 * cfg.hidden_dim + 4 * cfg.num_classes


def image_bytes(cfg: MixerConfig, checkpointing: bool) -> int:
    """Memory for one more image of a batch: what is kept, two hidden gradients of a block, and the pixels before and
    after normalising.

    With checkpointing, one block is computed again at a time.
    """
    height, width = pair(cfg.image_size)
    working = 4 * cfg.num_patches * cfg.channels_mlp_dim + (block_bytes(cfg) if checkpointing else 0)
    return kept_bytes(cfg, checkpointing=checkpointing) + working + 8 * cfg.in_channels * height * width


STATE = {
    "weights, float32": 4,
    "gradients, float32": 4,
    "AdamW's two moments, float32": 8,
    "weights in bfloat16, while autocast keeps them": 2,
    "moving average of the weights, float32 (only with --optim.ema-decay)": 4,
}  # bytes a parameter, on every GPU


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Times of one training step, in seconds. The exchange of gradients is hidden behind the backward pass, which is
    two thirds of the computing."""

    compute: float
    exchange: float
    optimizer: float

    @property
    def whole(self) -> float:
        return self.compute + max(0.0, self.exchange - self.compute * 2 / 3) + self.optimizer


def step_of(plan: Plan, gpus: int, share: float, node_gb_s: float) -> Step:
    """Compute at `share` of the matrix rate; ring all-reduce of float32 gradients; AdamW and clipping, 32 bytes a
    parameter."""
    cfg = MIXERS[plan.model]
    params = cfg.num_params
    among = plan.nvlink_gb_s if gpus <= plan.gpus_per_node else min(plan.nvlink_gb_s, node_gb_s)
    return Step(
        compute=plan.batch / gpus * training_flops(plan.model) / (share * plan.matrix_tflops * 1e12),
        exchange=2 * (gpus - 1) / gpus * 4 * params / (among * 1e9),
        optimizer=32 * params / (plan.memory_tb_s * 1e12),
    )


def table(head: str, rows: list[list[str]]) -> str:
    columns = head.split(" | ")
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def tables(plan: Plan) -> dict[str, str]:
    """Markdown tables by name."""
    cfg = MIXERS[plan.model]
    params, steps = cfg.num_params, round(plan.images * plan.epochs / plan.batch)
    names = dict.fromkeys(["S/16", "B/16", "L/16", "H/14", plan.model])
    rate = {share: share * plan.matrix_tflops * 1e12 for share in (plan.low_share, plan.share)}
    out = {}

    out["Work"] = table(
        "model | parameters | GFLOP an image, forward | forward and backward"
        + "".join(f" | images/s of a GPU at {share:.0%} of {plan.matrix_tflops:g} TFLOP/s" for share in rate),
        [
            [
                name,
                f"{c.num_params / 1e6:.1f} M",
                f"{f / 1e9:.1f}",
                f"{3 * f / 1e9:.1f}",
                *(f"{r / (3 * f):,.0f}" for r in rate.values()),
            ]
            for name in names
            for c in [MIXERS[name]]
            for f in [forward_flops(c)]
        ],
    )

    rows = []
    for gpus in plan.gpus:
        for share, node_gb_s in (
            (plan.share, plan.node_gb_s),
            (plan.low_share, plan.node_gb_s),
            (plan.share, plan.slow_gb_s),
        ):
            if gpus <= plan.gpus_per_node and node_gb_s == plan.slow_gb_s:
                continue
            s = step_of(plan, gpus, share, node_gb_s)
            days, hours = steps * s.whole / 86400, steps * s.whole / 3600 * gpus
            network = "NVLink" if gpus <= plan.gpus_per_node else f"{node_gb_s:g} GB/s a machine"
            times = [f"{1e3 * t:,.1f}" for t in (s.compute, s.exchange, s.whole)]
            speed = [f"{plan.batch / s.whole:,.0f}", f"{days:,.1f}", f"{hours:,.0f}"]
            rows.append(
                [
                    f"{gpus}",
                    f"{share:.0%}",
                    network,
                    *times,
                    *speed,
                    f"{hours * plan.price:,.0f}",
                    f"{hours * plan.gpu_kw / 1e3:.1f}",
                ]
            )
    out[f"Time and cost of {steps:,} steps"] = table(
        "GPUs | share | between machines | computing, ms | exchange, ms | step, ms | images/s | days | GPU hours | "
        "dollars | MWh",
        rows,
    )

    out["State"] = table(
        "on each GPU | bytes a parameter | GB",
        [[what, f"{b}", f"{b * params / 1e9:.2f}"] for what, b in STATE.items()]
        + [["all", f"{sum(STATE.values())}", f"{sum(STATE.values()) * params / 1e9:.2f}"]],
    )

    rows = []
    for name in names:
        c = MIXERS[name]
        state = sum(STATE.values()) * c.num_params / 1e9
        room = [max(gb - plan.reserve_gb - state, 0) * 1e9 for gb in plan.gpu_gb]
        fits = [[f"{math.floor(r / image_bytes(c, ck)):,}" for r in room] for ck in (False, True)]
        mb = [f"{image_bytes(c, ck) / 1e6:.1f}" for ck in (False, True)]
        rows.append([name, f"{state:.1f}", mb[0], *fits[0], mb[1], *fits[1]])
    sizes = "".join(f" | fit {gb:g} GB" for gb in plan.gpu_gb)
    out["Images that fit"] = table(f"model | state, GB | MB an image{sizes} | MB with checkpointing{sizes}", rows)

    rows = []
    for gpus in plan.gpus:
        own, state = math.ceil(plan.batch / gpus), sum(STATE.values()) * params / 1e9
        need = [plan.reserve_gb + state + own * image_bytes(cfg, ck) / 1e9 for ck in (False, True)]
        fit = [math.floor((gb - plan.reserve_gb - state) * 1e9 / image_bytes(cfg, False)) for gb in plan.gpu_gb]
        parts = [f"{math.ceil(own / n)}" if n > 0 else "does not fit" for n in fit]
        rows.append([f"{gpus}", f"{own}", *(f"{n:.0f}" for n in need), *parts])
    parts_of = "".join(f" | parts on {gb:g} GB" for gb in plan.gpu_gb)
    out["Memory of a GPU"] = table(f"GPUs | images of a GPU | GB | GB with checkpointing{parts_of}", rows)

    rows = []
    for gpus in plan.gpus:
        fed = plan.batch / step_of(plan, gpus, plan.share, plan.node_gb_s).whole
        cores = fed / plan.decoded_per_core
        nodes = max(gpus / plan.gpus_per_node, 1)
        held = plan.buffer * plan.image_kb / 1e6 / nodes
        cells = f"{fed:,.0f}", f"{fed * plan.image_kb / 1e6:.2f}", f"{cores:,.0f}", f"{cores / gpus:.1f}", f"{held:.1f}"
        rows.append([f"{gpus}", *cells])
    out[f"Data: {plan.images * plan.image_kb / 1e9:,.1f} TB in {math.ceil(plan.images / plan.per_shard):,} shards of "
        f"{plan.per_shard * plan.image_kb / 1e3:,.0f} MB"] = table(
        "GPUs | images/s | GB/s from storage | cores that decode | a GPU | buffer of a machine, GB", rows
    )  # fmt: skip

    size = 12 * params / 1e9  # weights and two moments; the average, if any, 4 bytes more
    wait = size / plan.write_gb_s
    out["Checkpoints"] = table(
        "GB of a checkpoint | with an average | s to write | share of the time",
        [[f"{size:.1f}", f"{16 * params / 1e9:.1f}", f"{wait:.1f}", f"{wait / (plan.save_every_s + wait):.1%}"]],
    )
    return out


# --- what others have measured
# ------------------------------------------------------------------------------------------

TPU = 61.5  # nominal TFLOP/s of a TPU v3 core: half of a chip's 123
RTX_3090 = 71  # nominal, float16 products with float32 sums


def published() -> str:
    """Shares of the nominal rate that follow from published times. Above 100 % the formula would be wrong."""
    larger = MIXERS["H/14"].adapted(image_size=448, method="parts")
    day = 86400.0
    cases = [  # (what, FLOP an image, images, seconds of one device, its nominal TFLOP/s)
        (
            "H/14, JFT-300M, 14 epochs: 1,010 days of a TPU v3 core (paper, table 2)",
            training_flops("H/14"),
            14 * 300e6,
            1010 * day,
            TPU,
        ),
        (
            "L/16, ImageNet-21k, 300 epochs: 410 days of a core (paper, table 2)",
            training_flops("L/16"),
            300 * 14.2e6,
            410 * day,
            TPU,
        ),
        (
            "B/16, ImageNet-1k, 300 epochs: 131 min of 128 cores (big_vision)",
            training_flops("B/16"),
            300 * 1.268e6,
            128 * 131 * 60.0,
            TPU,
        ),
        ("H/14 at 448 px, forward: 40 images/s of a core (paper, table 2)", forward_flops(larger), 40, 1.0, TPU),
        ("L/16, training: 171 images/s of an RTX 3090 (timm, NHWC, 2022)", training_flops("L/16"), 171, 1.0, RTX_3090),
        ("B/16, the same: 557 images/s", training_flops("B/16"), 557, 1.0, RTX_3090),
        ("S/16, the same: 1,661 images/s", training_flops("S/16"), 1661, 1.0, RTX_3090),
    ]
    rows = [
        [what, f"{f * n:.2e}", f"{f * n / s / 1e12:.1f}", f"{peak:g}", f"{f * n / s / 1e12 / peak:.0%}"]
        for what, f, n, s, peak in cases
    ]
    return table("published | FLOP by the formula | TFLOP/s of a device | nominal | share", rows)


def main(plan: Plan) -> None:
    for name, text in tables(plan).items():
        print(f"**{name}**\n\n{text}\n")
    print(f"**The formula on published runs**\n\n{published()}\n")
    for field in dataclasses.fields(plan):
        print(f"{field.name} = {getattr(plan, field.name)}")


if __name__ == "__main__":
    try:
        line = read(Plan, "scale.py", sys.argv[1:])
        print(page(line)) if line.help else main(Plan.of(line))
    except ValueError as e:
        sys.exit(f"scale.py: {e}")
