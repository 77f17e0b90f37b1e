"""Images per second of each augmentation, on one batch, against the training step it feeds.

    python benchmarks/augment.py --step-images-per-s 600

Best of several repetitions, conversion from uint8 included. The last column is how many times faster than the step it
is.
"""

import argparse
import time

import torch

from mlpmixer.training.augment import augment, mix, prepare_eval
from mlpmixer.training.recipe import Augment

RECIPES = {
    "none": Augment(),
    "flip": Augment(flip=True),
    "pad_crop": Augment(pad_crop_px=4),
    "inception_crop": Augment(inception_crop=0.08),
    "rotate+zoom+shear": Augment(rotate_deg=15, zoom=0.1, shear=0.1),
    "color_jitter": Augment(color_jitter=0.4),
    "noise": Augment(noise=0.05),
    "erasing": Augment(erasing=0.25),
    "randaugment (2 layers)": Augment(randaugment_layers=2),
    "randaugment (2 layers, big_vision)": Augment(randaugment_layers=2, randaugment_form="big_vision"),
    "trivialaugment": Augment(trivialaugment=True),
    "mixup": Augment(mixup=0.8),
    "cutmix": Augment(cutmix=1.0),
    "flip, pad_crop": Augment(flip=True, pad_crop_px=4),
    "flip, pad_crop, color_jitter, erasing, mixup|cutmix": Augment(
        flip=True, pad_crop_px=4, color_jitter=0.4, erasing=0.25, mixup=0.2, cutmix=1.0
    ),
    "flip, inception_crop, mixup": Augment(flip=True, inception_crop=0.08, mixup=0.5),
    "everything": Augment(
        inception_crop=0.3, pad_crop_px=4, flip=True, randaugment_layers=2, trivialaugment=True, rotate_deg=15,
        zoom=0.1, shear=0.1,
        color_jitter=0.4, noise=0.05, erasing=0.25, mixup=0.2, cutmix=1.0,
    ),
}  # fmt: skip


def images_per_s(cfg: Augment, batch_size: int, stored: int, size: int, channels: int, seconds: float) -> float:
    images = torch.randint(256, (batch_size, stored, stored, channels), dtype=torch.uint8)
    targets = torch.eye(10)[torch.randint(10, (batch_size,))]
    generator, best, end = torch.Generator().manual_seed(0), float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        if cfg == Augment():
            prepare_eval(images)
        else:
            mix(augment(images, cfg, (size, size), generator), targets, cfg, generator)
        best = min(best, time.perf_counter() - start)
    return batch_size / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--step-images-per-s", type=float, default=600, help="speed of the training step that the batches feed"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--stored-size", type=int, default=0, help="pixels; 0 means image-size")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="spent on each row")
    args = parser.parse_args()
    stored = args.stored_size or args.image_size
    print(f"{args.batch_size} x {stored}x{stored}x{args.channels} -> {args.image_size} px")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'augmentation':52s} {'images/s':>10s} {'x step':>8s}")
    for name, cfg in RECIPES.items():
        speed = images_per_s(cfg, args.batch_size, stored, args.image_size, args.channels, args.seconds)
        print(f"{name:52s} {speed:10,.0f} {speed / args.step_images_per_s:8.1f}")


if __name__ == "__main__":
    main()
