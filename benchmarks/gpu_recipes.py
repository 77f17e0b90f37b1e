"""Recipes for small photos (32 px) on one GPU, for gpu_table.py and gpu.py. Not run yet on a GPU."""

import dataclasses
from collections.abc import Callable

from mlpmixer.data.config import Data
from mlpmixer.models.architecture import configured
from mlpmixer.models.names import MIXERS
from mlpmixer.registry import Registry
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe, Run

RECIPES: Registry[Callable[[], Recipe]] = Registry("recipe")


@RECIPES.register("small-images-1m")
def small_images_1m() -> Recipe:
    """Any small photos (32 px) at full strength with at most 1.2 M parameters: 300 epochs, made for one GPU.

    Patches of 2 px, as fine as the budget allows; locality folds into the plain Mixer that is saved. A step is 1.36
    GFLOPs an image, the whole run 20 PFLOPs on 49,000 images.
    python benchmarks/gpu_table.py --data-dir DIR --row 1m
    """
    return Recipe(
        name="small-images-1m",
        model=dataclasses.replace(
            MIXERS["Nano/2"], num_blocks=9, hidden_dim=128, tokens_mlp_dim=128, channels_mlp_dim=256
        ),
        data=Data(name="folder", val_fraction=0.02),
        init=Init(stem="whitened"),
        augment=Augment(pad_crop_px=4, flip=True, trivialaugment=True, cutmix=1.0, mix_probability=0.5),
        optim=Optim(
            name="muon",
            lr=4e-3,
            muon_lr=1e-2,
            weight_decay=0.1,
            schedule="linear",
            warmup_steps=1000,
            locality=3,
            label_smoothing=0.1,
            ema_decay=0.999,
        ),
        run=Run(epochs=300, batch_size=512, eval_every=25, log_every=100),
    )


@RECIPES.register("small-images-wide")
def small_images_wide() -> Recipe:
    """Any small photos (32 px), any size, nothing but these data: a wide Mixer, as many channels as patches, for 200
    epochs on one GPU.

    C = S is where a Mixer of given cost is widest (Hayase and Karakida 2024, arXiv:2306.01470). Strong augmentation and
    stochastic depth, as pyramids of MLPs are trained that reach 95-97 % (arXiv:2305.17644). 12.1 GFLOPs an image, 118
    PFLOPs on 49,000. python benchmarks/gpu_table.py --data-dir DIR --row wide
    """
    base = small_images_1m()
    return dataclasses.replace(
        base,
        name="small-images-wide",
        model=configured(
            base.model,
            num_blocks=12,
            hidden_dim=256,
            tokens_mlp_dim=256,
            channels_mlp_dim=1024,
            drop_path=0.15,
            drop_path_form="rescaled",
        ),
        augment=dataclasses.replace(base.augment, erasing=0.25, mixup=0.8, mix_probability=0.8),
        optim=dataclasses.replace(base.optim, lr=2e-3, muon_lr=6e-3),
        run=dataclasses.replace(base.run, epochs=200),
    )


@RECIPES.register("small-images-distilled")
def small_images_distilled() -> Recipe:
    """`small-images-wide` for 100 epochs with a teacher that was trained on the same images: to be given as --teacher,
    or in Python.

    python benchmarks/gpu_table.py --data-dir DIR --row distilled
    """
    base = small_images_wide()
    return dataclasses.replace(
        base,
        name="small-images-distilled",
        distill=dataclasses.replace(base.distill, alpha=0.9, temperature=2.0),
        run=dataclasses.replace(base.run, epochs=100),
    )


@RECIPES.register("small-images-30s")
def small_images_30s() -> Recipe:
    """Any small photos (32 px), as far as half a minute on one GPU takes: 4-px patches, 50 epochs, light augmentation.

    0.76 GFLOPs an image, 1.9 PFLOPs on 49,000.
    python benchmarks/gpu_table.py --data-dir DIR --row 90
    """
    base = small_images_1m()
    return dataclasses.replace(
        base,
        name="small-images-30s",
        model=configured(
            base.model, patch_size=4, num_blocks=6, hidden_dim=256, tokens_mlp_dim=128, channels_mlp_dim=512
        ),
        augment=dataclasses.replace(base.augment, trivialaugment=False),
        optim=dataclasses.replace(base.optim, warmup_steps=200),
        run=dataclasses.replace(base.run, epochs=50, eval_every=50, save_every_s=1e9),
    )


@RECIPES.register("small-images-5m")
def small_images_5m() -> Recipe:
    """Any small photos (32 px), as far as five minutes on one GPU take: `small-images-wide` with 10 narrower blocks,
    for 60 epochs.

    6.0 GFLOPs an image, 18 PFLOPs on 49,000.
    python benchmarks/gpu_table.py --data-dir DIR --row 94
    """
    base = small_images_wide()
    return dataclasses.replace(
        base,
        name="small-images-5m",
        model=configured(base.model, num_blocks=10, channels_mlp_dim=512, drop_path=0.05),
        augment=small_images_1m().augment,
        run=dataclasses.replace(base.run, epochs=60, eval_every=30),
    )
