"""The relatives of the Mixer beside the official forms of their operators: python benchmarks/relatives.py

Both have the same weights and take turns in one process: forward in evaluation, and forward, cross-entropy and backward
in training, in float32 and, where the CPU has it, under bfloat16 autocast. `ratio` is the official form's time over
ours, the median of the turns, and `low` and `high` its quartiles: above 1 ours is faster.
`max_abs_diff_vs_reference` is the largest difference of our logits from the official form's in float32,
`gradient_error` the distance of the gradient in lengths of the official form's, all parameters together; a row that is
not close is void. On a busy machine take one thread (OMP_NUM_THREADS=1) and --cpu-time. Writes
benchmarks/relatives_<torch>_<device>.csv.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from official_forms import named, official_form
from table import path_of, write
from torch import Tensor, nn

from mlpmixer.hardware import has_bf16
from mlpmixer.models.architecture import build
from mlpmixer.models.names import MODELS
from mlpmixer.models.network import Network
from mlpmixer.reproduce.family.recipes import RELATIVES

PUBLISHED = ("resmlp-s12", "gmlp-s/16", "s2-mlp-wide", "s2-mlpv2-s/7", "as-mlp-t", "vip-s/7", "repmlpnet-t224")
CASES = [*(f"{name}:64" for name in RELATIVES if name != "Mixer"), *(f"{name}:2" for name in PUBLISHED)]


def run(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool, backward: bool) -> Tensor:
    """Logits, and with `backward` the gradients of all parameters."""
    with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits: Tensor = model(images).float()
    if backward:
        F.cross_entropy(logits, labels).backward()
    return logits.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(name: str, batch: int, turns: int, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """A row for each precision, and for forward and forward with backward."""
    torch.manual_seed(0)
    cfg: Any = RELATIVES[name] if name in RELATIVES else MODELS[name]
    ours = build(cfg)
    assert isinstance(ours, Network)
    with torch.no_grad():
        for p in ours.parameters():  # no head of zeros, no gate that is open alone
            p.add_(0.02 * torch.randn_like(p))
    theirs = official_form(ours)
    images = torch.randn(batch, cfg.in_channels, cfg.image_size, cfg.image_size)
    labels = torch.randint(0, cfg.num_classes, (batch,))
    for backward in (False, True):
        reference, wanted = torch.empty(0), {}
        for bf16 in (False, True) if has_bf16(torch.device("cpu")) else (False,):
            ours.train(backward), theirs.train(backward)
            times, logits = {ours: [], theirs: []}, {}
            for turn in range(turns + 1):
                for model in (ours, theirs) if turn % 2 else (theirs, ours):
                    model.zero_grad()
                    start = clock()
                    logits[model] = run(model, images, labels, bf16, backward)
                    if turn:  # the first one warms up
                        times[model].append(clock() - start)
            if not bf16:
                reference, wanted = logits[theirs], gradients(theirs)
            row = {
                "model": name, "batch": batch, "precision": "bfloat16" if bf16 else "float32",
                "what": "forward+backward" if backward else "forward",
                "official_ms": round(1000 * statistics.median(times[theirs]), 1),
                "ours_ms": round(1000 * statistics.median(times[ours]), 1),
            }  # fmt: skip
            turn_ratios = [a / b for a, b in zip(times[theirs], times[ours], strict=True)]
            low, ratio, high = (round(q, 2) for q in statistics.quantiles(turn_ratios, n=4, method="inclusive"))
            row |= {"ratio": ratio, "low": low, "high": high}
            row["max_abs_diff_vs_reference"] = f"{(logits[ours] - reference).abs().max():.1e}"
            row["gradient_error"] = ""
            if backward:
                got = named(cfg, ours.state_dict() | gradients(ours))
                off = torch.cat([(got[name].reshape(want.shape) - want).flatten() for name, want in wanted.items()])
                length = torch.cat([want.flatten() for want in wanted.values()]).norm()
                row["gradient_error"] = f"{off.norm() / length:.1e}"
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=CASES, help="NAME:BATCH")
    parser.add_argument("--turns", type=int, default=9, help="of each pair, after one that warms up")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds instead of the clock's")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in args.models:
        name, batch = case.rsplit(":", 1)
        for row in compare(name, int(batch), args.turns, time.process_time if args.cpu_time else time.perf_counter):
            rows.append(row)
            print(*row.values(), sep="\t", flush=True)
    write(path_of("relatives", torch.device("cpu")), rows)


if __name__ == "__main__":
    main()
