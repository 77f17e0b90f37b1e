"""Forward pass and training step, ours and timm's, interleaved in one process: python benchmarks/step.py

Run it with a Python that has timm beside mlpmixer for the rows of timm (timm needs a torchvision, which is never a
dependency of ours). Each row is the median of interleaved rounds; `max_abs_diff_vs_reference` is the largest difference
of the logits from our float32 ones for the same weights, and a row that is not close is void. Writes
benchmarks/step_<torch>_<cpu>.csv.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from table import path_of, write

from mlpmixer.hardware import has_bf16
from mlpmixer.models.architecture import create_model
from mlpmixer.models.mixer import Mixer

MODES = ["float32", "bfloat16"]


def timm_twin(model: Mixer) -> torch.nn.Module | None:
    """timm's MlpMixer with our architecture and our weights; None where timm is not installed."""
    try:
        from timm.models.mlp_mixer import MlpMixer
    except ImportError:
        return None
    cfg = model.cfg
    assert isinstance(cfg.image_size, int) and isinstance(cfg.patch_size, int)
    ratio = (cfg.tokens_mlp_dim / cfg.hidden_dim, cfg.channels_mlp_dim / cfg.hidden_dim)
    twin = MlpMixer(
        num_classes=cfg.num_classes, img_size=cfg.image_size, patch_size=cfg.patch_size, num_blocks=cfg.num_blocks,
        embed_dim=cfg.hidden_dim, mlp_ratio=ratio,
    )  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        theirs = (
            name.replace("token_mixing", "mlp_tokens")
            .replace("channel_mixing", "mlp_channels")
            .replace("stem.", "stem.proj.")
        )
        state[theirs] = (
            value.view(cfg.hidden_dim, 3, cfg.patch_size, cfg.patch_size) if name == "stem.weight" else value
        )
    twin.load_state_dict(state)
    return twin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["Nano/4:128", "S/16:8"], help="NAME:BATCH")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for spec in args.models:
        name, batch = spec.split(":")
        torch.manual_seed(0)
        ours = create_model(name, activation="gelu_erf")  # timm's form, so that the logits can be compared
        torch.nn.init.normal_(ours.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
        size = ours.cfg.image_size
        assert isinstance(size, int)
        images, labels = torch.randn(int(batch), 3, size, size), torch.randint(0, ours.cfg.num_classes, (int(batch),))
        rivals: dict[str, torch.nn.Module] = {"mlpmixer": ours}
        if (twin := timm_twin(ours)) is not None:
            rivals["timm"] = twin
        with torch.no_grad():
            reference = ours.eval()(images)
        times: dict[tuple[str, str, str], list[float]] = {}
        diffs: dict[tuple[str, str], float] = {}

        def forward(model: torch.nn.Module, mode: str, images: torch.Tensor = images) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16"):
                return model(images)  # type: ignore[no-any-return]

        def train(model: torch.nn.Module, mode: str, labels: torch.Tensor = labels) -> None:
            F.cross_entropy(forward(model, mode).float(), labels).backward()
            model.zero_grad()

        for i in range(args.rounds + 1):
            for mode in MODES if has_bf16(torch.device("cpu")) else MODES[:1]:
                for rival, model in rivals.items():
                    with torch.no_grad():
                        diffs[rival, mode] = (forward(model.eval(), mode).float() - reference).abs().max().item()
                        seconds = timed(lambda m=model, d=mode: forward(m, d))  # type: ignore[misc]
                    model.train()
                    step = timed(lambda m=model, d=mode: train(m, d))  # type: ignore[misc]
                    if i:  # the first round warms up
                        times.setdefault((rival, mode, "forward"), []).append(seconds)
                        times.setdefault((rival, mode, "forward+backward"), []).append(step)
        for (rival, mode, what), values in times.items():
            median = statistics.median(values)
            row = {
                "model": name, "batch": batch, "implementation": rival, "precision": mode, "what": what,
                "images_per_s": round(int(batch) / median, 1), "median_ms": round(1000 * median, 1), "min_ms": round(1000 * min(values), 1),  # noqa: E501
                "max_abs_diff_vs_reference": f"{diffs[rival, mode]:.1e}",
            }  # fmt: skip
            rows.append(row)
            print(*row.values(), sep="\t", flush=True)
    write(path_of("step", torch.device("cpu")), rows)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
