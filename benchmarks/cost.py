"""What each option of a training step costs, as a multiple of the plain step: python benchmarks/cost.py

The network of the recipe cifar10 (1.17 M parameters, batch 64) on noise, in the precision that `train` chooses. The
plain step is AdamW without augmentation or average. Each row takes turns with the plain step, a step each; `ratio` is
between the least times of the two, what other processes do to a step being always more; then median and quartiles of
the turns. On a busy machine take one thread (OMP_NUM_THREADS=1) and --cpu-time. Writes
benchmarks/cost_<torch>_<device>.csv.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from table import path_of, write

from mlpmixer.config import pair
from mlpmixer.data.image_set import ImageSet, Splits, array_images
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.store import Store
from mlpmixer.hardware import choose_device, choose_precision, device_name
from mlpmixer.training.averaging import average_weight
from mlpmixer.training.inputs import Stores, batches
from mlpmixer.training.recipe import Augment, Optim, Recipe
from mlpmixer.training.recipes import cifar10
from mlpmixer.training.step import TrainingStep

PLAIN = dataclasses.replace(cifar10(), augment=Augment(), optim=Optim(name="adamw"))
TORCHS_MUON = "Muon, a matrix at a time (torch.optim.Muon)"


def change(**parts: dict[str, Any]) -> Recipe:
    """The plain recipe with fields replaced."""
    return dataclasses.replace(
        PLAIN, **{owner: dataclasses.replace(getattr(PLAIN, owner), **fields) for owner, fields in parts.items()}
    )


RECIPES = {
    "plain: AdamW": PLAIN,
    "SGD": change(optim={"name": "sgd"}),
    "Muon": change(optim={"name": "muon"}),
    TORCHS_MUON: change(optim={"name": "muon"}),
    "clipping": change(optim={"clip_norm": 1.0}),
    "moving average": change(optim={"ema_decay": 0.999}),
    "mean of the last steps": change(optim={"average_last": 1.0}),
    "SAM": change(optim={"sam_rho": 0.1}),
    "locality 3": change(optim={"locality": 3}),
    "mirror symmetry": change(optim={"mirror": True}),
    "pad, crop, flip, CutMix": dataclasses.replace(PLAIN, augment=cifar10().augment),
    "RandAugment, 2 layers": change(augment={"randaugment_layers": 2}),
    "checkpointing": change(run={"checkpointing": True}),
    "half the image size (progressive)": change(run={"progressive": "16:0.9"}),
    "the recipe cifar10: Muon, locality, mirror, pad, crop, flip, CutMix": cifar10(),
}


def noise(recipe: Recipe, images: int = 1024) -> Stores:
    """Images that nothing can be learned from, ready for a TrainingStep."""
    size, classes = pair(recipe.model.image_size), [str(i) for i in range(recipe.model.num_classes)]
    pixels = np.random.default_rng(0).integers(0, 256, (images, *size, 3), np.uint8)
    found = ImageSet(classes, np.arange(images) % len(classes), [str(i) for i in range(images)], array_images(pixels))
    preprocess = Preprocess(image_size=size, in_channels=3, fit=recipe.data.fit, mean=(0.5,) * 3, std=(0.25,) * 3)
    store = Store(found, preprocess, cache_mib=4096, workers=1)
    return Stores(Splits("noise", found, found, None, found.classes, ()), preprocess, store, store)


def seconds_of_steps(
    name: str, recipe: Recipe, device: torch.device, dtype: torch.dtype, steps: int, clock: Callable[[], float]
) -> Iterator[float]:
    """What `steps` updates took, one after the other, as `train` takes them."""
    stores = noise(recipe)
    step = TrainingStep(recipe, stores, device, dtype)
    if name == TORCHS_MUON:
        ours = step.optimizers[1]
        step.optimizers[1] = torch.optim.Muon(
            [dict(group) for group in ours.param_groups], adjust_lr_fn="match_rms_adamw"
        )
    for batch in batches(stores.train, recipe.run, 1, steps):
        wait(device)
        start = clock()
        step(batch, 1.0)
        step.average_in(average_weight(batch.step, steps, recipe.optim))
        wait(device)
        yield clock() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--turns", type=int, default=15, help="turns of each row with the plain step, after two that warm up"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds instead of the clock's")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    device = choose_device(args.device)
    dtype = choose_precision("auto", device)
    print(f"{str(dtype).removeprefix('torch.')} on {device_name(device)}, torch {torch.__version__}")
    table: list[dict[str, Any]] = []
    for name, recipe in RECIPES.items():
        plain = seconds_of_steps("plain", PLAIN, device, dtype, args.turns + 2, clock)
        turns = list(zip(plain, seconds_of_steps(name, recipe, device, dtype, args.turns + 2, clock), strict=True))[2:]
        low, median, high = (
            round(q, 3) for q in statistics.quantiles([row / of for of, row in turns], n=4, method="inclusive")
        )
        of, row = (min(times) for times in zip(*turns, strict=True))
        ratio, precision = round(row / of, 3), str(dtype).removeprefix("torch.")
        print(f"{name:52s} {ratio:6.2f}  ({median:.2f}, {low:.2f}-{high:.2f})  {1000 * row:8.1f} ms", flush=True)
        figures = {
            "ratio": ratio,
            "median_of_turns": median,
            "low": low,
            "high": high,
            "least_ms": round(1000 * row, 1),
        }
        table.append({"step": name, "precision": precision, **figures})
    write(path_of("cost", device), table)


if __name__ == "__main__":
    main()
