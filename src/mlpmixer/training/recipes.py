"""The recipes by name, each a function that returns a Recipe. No torch.

Its docstring is its claim, backed by `results/`. A variant calls a recipe and replaces fields. The resolved recipes are
stored as JSON in tests/golden, so that a changed default is a reviewed difference.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

from mlpmixer.data.config import Data
from mlpmixer.models import names
from mlpmixer.registry import Registry
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe, Run, variant

RECIPES: Registry[Callable[..., Recipe]] = Registry("recipe")
MUON = Optim(name="muon", schedule="linear", label_smoothing=0.1)  # what training from scratch has in common


@RECIPES.register("digits")
def digits() -> Recipe:
    """scikit-learn's 8x8 digits, offline; a stratified fifth is test, redrawn for each split seed.

    mlpmixer train digits --seed N --data.split-seed N
    Result: test top-1 99.00 % (98.61-99.72, n = 5), 64 s on one core of an AMD EPYC, bfloat16.
    """
    return Recipe(
        name="digits",
        model=names.MIXERS["Pico/2"],
        data=Data(name="digits", val_fraction=0.05),
        augment=Augment(pad_crop_px=1, pad_mode="constant", rotate_deg=6, zoom=0.05, shear=0.05, noise=0.04),
        optim=dataclasses.replace(MUON, lr=2e-3, muon_lr=3e-3, weight_decay=0.05, warmup_steps=50, ema_decay=0.99),
        run=Run(epochs=100, batch_size=64, eval_every=10),
    )


@RECIPES.register("mnist")
def mnist() -> Recipe:
    """MNIST from scratch on two CPU cores, 14 epochs, 0.65 M parameters.

    mlpmixer train mnist --data-dir DIR
    Result: test top-1 99.48 % (n = 1), 18.4 min on two cores of an AMD EPYC, bfloat16.
    """
    return Recipe(
        name="mnist",
        model=names.MIXERS["Mini/4"],
        data=Data(name="mnist", val_fraction=1 / 12),
        augment=Augment(pad_crop_px=2, pad_mode="constant", rotate_deg=10, zoom=0.12, shear=0.15),
        optim=dataclasses.replace(MUON, lr=2e-3, muon_lr=4e-3, weight_decay=0.05, warmup_steps=300, ema_decay=0.998),
        run=Run(epochs=14, batch_size=128),
    )


@RECIPES.register("cifar10")
def cifar10() -> Recipe:
    """CIFAR-10 from scratch on a CPU, 10 epochs, 1.17 M parameters.

    mlpmixer train cifar10 --data-dir DIR --seed N
    Result: test top-1 87.03 % (86.32-87.40, n = 3), 490,000 images in 20 min on one core of a busy AMD EPYC (family
    26), bfloat16; 88.60 % over five shifted views (`mlpmixer evaluate RUN --tta shift`).
    """
    return Recipe(
        name="cifar10",
        model=dataclasses.replace(names.MIXERS["Nano/4"], tokens_mlp_dim=96, channels_mlp_dim=512),
        data=Data(name="cifar10", val_fraction=0.02),
        init=Init(stem="whitened"),
        augment=Augment(pad_crop_px=4, flip=True, cutmix=1.0, mix_probability=0.25),
        optim=dataclasses.replace(
            MUON, lr=3e-3, muon_lr=8e-3, muon_beta2=0.999, weight_decay=0.1, warmup_steps=600, locality=3, mirror=True
        ),
        run=Run(epochs=10, batch_size=64),
    )


@RECIPES.register("small-images-2h")
def small_images_2h() -> Recipe:
    """Any small photos (32 px) with at most 1.2 M parameters, two hours on two CPU cores: 4-px patches, 84 epochs.

    mlpmixer train DATA --recipe small-images-2h
    Result: CIFAR-10 92.18 % on test (91.96-92.41, n = 2), 4.1 million images in 167 min on one core of a busy AMD EPYC
    (family 26), bfloat16, 1,165,194 parameters. Images are mirrored, which signs do not stand: MNIST 99.28 % (n = 1).
    """
    return variant(
        cifar10(),
        "small-images-2h",
        data={"name": "folder"},
        augment={"trivialaugment": True, "mix_probability": 0.5},
        optim={"muon_lr": 2.5e-3, "warmup_steps": 1000},
        run={"epochs": 84, "eval_every": 5, "log_every": 200},
    )


@RECIPES.register("photos")
def photos() -> Recipe:
    """Any folder of photographs, from scratch, 64 px: the default for data that has no recipe of its own.

    mlpmixer train DIR/trashnet; mlpmixer train DIR/flowers89
    Result: test top-1 83.53 % (TrashNet, 6 classes, 1,768 photos, n = 1, 3.2 min) and 62.50 % (89 classes of Flowers,
    2,208 photos, n = 1, 3.4 min), each on one core of an AMD EPYC (family 26), bfloat16.
    Images are shifted, and scaled up as often as down: random crops, which only magnify, failed on textures
    (docs/lab/LOG.md).
    """
    return Recipe(
        name="photos",
        model=names.MIXERS["Nano/8"],
        data=Data(name="folder"),
        init=Init(stem="whitened"),
        augment=Augment(pad_crop_px=6, flip=True, zoom=0.25, color_jitter=0.3, mixup=0.2, mix_probability=0.5),
        optim=dataclasses.replace(MUON, lr=2e-3, muon_lr=3e-3, weight_decay=0.1, warmup_steps=200, ema_decay=0.995),
        run=Run(epochs=40, batch_size=64, eval_every=4),
    )


@RECIPES.register("pretrain-photos")
def pretrain_photos() -> Recipe:
    """Many photos of many kinds at 64 px, to start others from: 2 million images, smaller at first (32, 48, 64 px).

    mlpmixer train tiny-imagenet --data-dir DIR --recipe pretrain-photos
    Result: 43.96 % of Tiny-ImageNet's 5,000 validation images (n = 1), from 44,100 of its images; 75 min on one core of
    a busy AMD EPYC (family 26), bfloat16.
    These validation images are test, as in ImageNet's protocol; validation is cut from train. Not of the paper.
    """
    return variant(
        small_images_2h(),
        "pretrain-photos",
        model=names.MIXERS["Nano/8"],
        data={"val_is_test": True},
        augment={"pad_crop_px": 8},
        optim={"muon_lr": 5e-3},
        run={"steps": 31_250, "progressive": "32:0.3,48:0.6", "eval_every": 5},
    )


@RECIPES.register("finetune")
def finetune(base: Recipe | None = None) -> Recipe:
    """Photographs, from the weights of a run on other data, 10 epochs: the default for `--init RUN`.

    mlpmixer train DIR/trashnet --init RUN
    Result: validation top-1 80.2 % on TrashNet from a run on CIFAR-10 or on flowers (n = 1 each), 57.0 from scratch in
    as many epochs, with the augmentation that `photos` had then; test not looked at.
    With another `base`, it takes a quarter of its epochs. Chosen on validation, as `retune` was: docs/lab/LOG.md.
    """
    base = base or photos()
    shorter = {"epochs": base.run.epochs / 4, "eval_every": base.run.eval_every / 2}
    return variant(base, "finetune", init=Init(), optim={"muon_lr": 6e-3, "warmup_steps": 30}, run=shorter)


@RECIPES.register("retune")
def retune(base: Recipe | None = None) -> Recipe:
    """Photographs, from the weights of a run on them, 10 epochs: the default for `--init RUN --patch-size N`.

    mlpmixer train DIR/flowers89 --init RUN --patch-size 12; mlpmixer train DIR/flowers89 --init RUN --image-size 128
    Result: test top-1 61.8 % (60.8-62.6, n = 3) and 66.1 % (65.6-66.4, n = 3) on 89 classes of flowers, from runs at 64
    px that had 59.7 (58.6-61.2); 1.3-2.3 and 4.4-5.7 min on one busy core of an AMD EPYC (family 26), bfloat16; with
    the augmentation that `photos` had then.
    """
    return variant(finetune(base), "retune", optim={"lr": 1e-3, "muon_lr": 1e-3})


@RECIPES.register("finetune-published")
def finetune_published(base: Recipe | None = None) -> Recipe:
    """Photographs, from Google's or timm's weights, 10 epochs: the default for `--init NAME|FILE` with those.

    The official rule, its rate scaled to the batch of `base`; not run here.
    """
    base, official = base or photos(), finetune_official()
    lr = official.optim.lr * base.run.images_per_step / official.run.images_per_step
    optim = dataclasses.replace(official.optim, lr=lr, warmup_steps=100)
    return variant(finetune(base), "finetune-published", optim=optim)


@RECIPES.register("finetune-official")
def finetune_official() -> Recipe:
    """Fine-tuning as in the official code: SGD at 224 px; also the paper's setting for CIFAR-10 and CIFAR-100.

    vit_jax/configs/common.py: momentum in bfloat16, clipping at norm 1, no weight decay, a new zero head; 2 % held out.
    Pixels are scaled as the weights of `--init` saw them (-1..1 for official files). The crop differs: antialiased, of
    the image at 224 px. As published; not run here.
    """
    return Recipe(
        name="finetune-official",
        model=names.MIXERS["B/16"],
        data=Data(name="cifar10", fit="squash", val_fraction=0.02),
        augment=Augment(inception_crop=0.05, flip=True),
        optim=Optim(
            name="sgd",
            lr=0.03,
            momentum_dtype="bfloat16",
            weight_decay=0.0,
            warmup_steps=500,
            warmup_from="zero",
            clip_norm=1.0,
        ),
        run=Run(steps=10_000, batch_size=512, accumulate=8, precision="float32"),
    )


@RECIPES.register("finetune-flowers")
def finetune_flowers() -> Recipe:
    """The paper's fine-tuning on Oxford Flowers-102 and Pets: 500 steps, a tenth of train for validation.

    As published; not run here.
    """
    return variant(
        finetune_official(),
        "finetune-flowers",
        data={"name": "folder", "fit": "crop", "val_fraction": 0.1},
        optim={"warmup_steps": 100},  # big_vision/configs/transfer.py
        run={"steps": 500, "eval_every": 10},
    )


@RECIPES.register("finetune-imagenet")
def finetune_imagenet() -> Recipe:
    """The paper's fine-tuning on ImageNet-1k: 20,000 steps, a hundredth of train for validation, its val as test.

    The paper's table 2 is at --image-size 448. As published; not run here.
    """
    data = {"name": "folder", "fit": "crop", "val_fraction": 0.01, "val_is_test": True}
    return variant(finetune_official(), "finetune-imagenet", data=data, run={"steps": 20_000})


@RECIPES.register("finetune-vtab1k")
def finetune_vtab1k() -> Recipe:
    """The paper's fine-tuning on a VTAB-1k task, 1,000 images of at least 96 x 96 px.

    800 images train and 200 validate. Smaller images need --image-size 224. Where mirroring changes the label
    (orientation, position) add --augment.no-flip. As published; not run here.
    """
    return variant(bit_hyperrule(1000, 96 * 96), "finetune-vtab1k", data={"val_fraction": 0.2})


def bit_hyperrule(num_images: int, image_area_px: int) -> Recipe:
    """Fine-tuning by BiT-HyperRule (Kolesnikov et al. 2020, bit_hyperrule.py), as the MLP-Mixer paper uses it for VTAB.

    num_images: training images, which decide steps, warm-up and mixup. image_area_px: height times width of a typical
    image; from 96 x 96 px on the network runs at 448 px, below at 224. The decay is the paper's cosine (BiT's own rule
    has three drops), the rate is 0.003, the smallest of the grid. Images are kept 8/7 of the network's size and cut at
    random (256 to 224, 512 to 448).
    """
    steps = 500 if num_images < 20_000 else 10_000 if num_images < 500_000 else 20_000
    base = finetune_official()
    return variant(
        base,
        "bit-hyperrule",
        model={"image_size": 224 if image_area_px < 96 * 96 else 448},
        data={"name": "folder", "val_fraction": 0.1, "train_scale": 8 / 7},
        augment=Augment(flip=True, mixup=0.0 if num_images < 20_000 else 0.1),
        optim={"lr": 0.003, "warmup_steps": 100 if num_images < 20_000 else 500},
        run={"steps": steps, "eval_every": steps * base.run.images_per_step / num_images / 10},
    )


# The paper's search, section 3 and appendix C: ViT's grids (Dosovitskiy et al. 2021, table 4) with 0.06 for 0.001
LEARNING_RATES: Registry[tuple[float, ...]] = Registry("recipe with a grid")
LEARNING_RATES |= dict.fromkeys(
    ("finetune-official", "finetune-flowers", "finetune-imagenet"), (0.003, 0.01, 0.03, 0.06)
)
LEARNING_RATES["finetune-vtab1k"] = (0.003, 0.01, 0.03)


def grid(name: str) -> list[Recipe]:
    """The runs of the paper's search around a fine-tuning recipe, "NAME-lr0.003" and so on, without the test split.

    Run the one that is best on validation once more with `run.test`. Errors: UnknownName for a recipe without a grid.
    """
    rates, recipe = LEARNING_RATES[name], RECIPES[name]()
    return [variant(recipe, f"{name}-lr{lr:g}", optim={"lr": lr}, run={"test": False}) for lr in rates]


# RandAugment (layers, magnitude) and mixup by name: Steiner et al. 2022, arXiv:2106.10270;
# big_vision/configs/vit_i21k.py
AUGREG: Registry[tuple[int, int, float]] = Registry("AugReg level")
AUGREG |= {"none": (0, 0, 0.0), "light1": (2, 0, 0.0), "light2": (2, 10, 0.2), "medium1": (2, 15, 0.2)}
AUGREG |= {"medium2": (2, 15, 0.5), "strong1": (2, 20, 0.5), "strong2": (2, 20, 0.8)}


def augreg(augment: Augment, level: str) -> Augment:
    """`augment` with RandAugment (big_vision's form) and the mixing of an AugReg level; crop, flip and the rest stay.

    light1 is not a no-op: in big_vision's form, magnitude 0 inverts, darkens and posterizes.

    Errors: UnknownName for a level that is not in AUGREG.
    """
    layers, magnitude, mixup = AUGREG[level]
    return dataclasses.replace(
        augment,
        randaugment_layers=layers,
        randaugment_magnitude=magnitude,
        randaugment_form="big_vision",
        mixup=mixup,
        cutmix=0.0,
        mix_probability=1.0,
    )


@RECIPES.register("pretrain-imagenet1k")
def pretrain_imagenet1k() -> Recipe:
    """ImageNet-1k from scratch at 224 px, B/16, 300 epochs: big_vision's rule, the paper's table 4.

    configs/mlp_mixer_i1k.py, which reports 76.3 %. Sigmoid losses from a head bias of -ln 1000; AdamW with a weight
    decay of 1e-4 per step, which is 0.1 in units of the rate; RandAugment of 2 operations, magnitude 15, in
    big_vision's form (AugReg's medium2). Two things differ: mixup draws its proportion for every image, not for every
    step, and the crop is antialiased, of the middle square at 224 px. L/16 (the paper's table 3: 71.76 %) is the same
    with --model L/16 --model.drop-path 0.1. As published; not run here.
    """
    return Recipe(
        name="pretrain-imagenet1k",
        model=dataclasses.replace(names.MIXERS["B/16"], drop_path=0.1),
        data=Data(name="folder", val_fraction=0.01, val_is_test=True),
        init=Init(head_bias=-6.9),
        augment=augreg(Augment(inception_crop=0.05, flip=True), "medium2"),
        optim=Optim(
            name="adamw",
            lr=1e-3,
            weight_decay=0.1,
            schedule="linear",
            lr_end=1e-5,
            warmup_steps=10_000,
            warmup_from="zero",
            clip_norm=1.0,
            loss="sigmoid",
        ),
        run=Run(steps=92_897, batch_size=4096, accumulate=16),  # 300 epochs of the 1,268,355 images in train[:99%]
    )


@RECIPES.register("pretrain-imagenet21k")
def pretrain_imagenet21k() -> Recipe:
    """ImageNet-21k from scratch, B/16, 300 epochs: the paper's table 4 (AugReg's light2) and big_vision's rule.

    The loss, the head bias (-10, about -ln 21843) and the split (51,200 of 14,197,122 images held out, half of them as
    test) are those of big_vision/configs/vit_i21k.py, the linear decay the paper's. What differs is what differs in
    `pretrain-imagenet1k`. L/16 is the same with --model L/16 --model.drop-path 0.1 --augreg strong1. As published; not
    run here.
    """
    base = pretrain_imagenet1k()
    return variant(
        base,
        "pretrain-imagenet21k",
        data={"val_fraction": 0.0018, "test_fraction": 0.0018, "val_is_test": False},
        init={"head_bias": -10.0},
        augment=augreg(base.augment, "light2"),
        run={"steps": 1_036_078, "eval_every": 0.1},  # 300 epochs of 14,145,922 images
    )


def recipe_for(data_name: str, start: Literal["scratch", "same data", "other data", "published"] = "scratch") -> Recipe:
    """The recipe for data when none is named, with the data's name filled in.

    It is the data set's own if it has one; for another named data set, that of one with images of the same size and
    channels (CIFAR-100: `cifar10`); otherwise `photos`.

    start: from scratch, from weights trained here on the same or on other data, or from published ones (official,
    timm).
    """
    recipe = _own_recipe(data_name)
    changes = {"same data": retune, "other data": finetune, "published": finetune_published}
    if start in changes:
        recipe = changes[start](recipe)
    return variant(recipe, data={"name": data_name})


def _own_recipe(data_name: str) -> Recipe:
    from mlpmixer.data.catalog import DATASETS

    if data_name in RECIPES:
        return RECIPES[data_name]()
    if data_name in DATASETS:
        form = DATASETS[data_name].image_size, DATASETS[data_name].channels
        for name, info in DATASETS.items():
            if name in RECIPES and (info.image_size, info.channels) == form:
                return RECIPES[name]()
    return photos()
