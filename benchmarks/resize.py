"""A trained model at other image sizes, right after the resize: python benchmarks/resize.py RUN --sizes 24 40 48

Top-1 on the validation images of the run, without any training. For every size: the grid of patches resampled by each
filter, and again after `calibrate` on training images; the paper's blocks, where the size is a whole multiple; and,
where the patch can grow or shrink with the image, the patch resized and the grid kept.
"""

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpmixer.config import pair
from mlpmixer.data.datasets import open_images
from mlpmixer.data.image_set import ImageSet
from mlpmixer.evaluation.data import resolve_data
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.models.mixer import Mixer, MixerBlock
from mlpmixer.training.augment import normalise, prepare_eval
from mlpmixer.weights.adapt import adapt


def classifier(network: Mixer, original: Classifier) -> Classifier:
    """What `original` is, around a network of another size."""
    assert original.meta is not None
    preprocess = dataclasses.replace(original.preprocess, image_size=pair(network.cfg.image_size))
    return from_network(network, dataclasses.replace(original.meta, config=network.cfg, preprocess=preprocess))


def tensor(images: ImageSet, model: Classifier) -> Tensor:
    pixels = np.stack([model.preprocess_image(images.source(i)) for i in range(len(images))])
    return normalise(prepare_eval(torch.from_numpy(pixels)), model.preprocess)


@torch.no_grad()
def calibrate(model: Mixer, images: Tensor, original: Mixer, original_images: Tensor) -> None:
    """Scale W1 and W2 of every token-mixing MLP of `model`, in place, so that its activations are as strong as the
    original's.

    `images` and `original_images` are the same pictures, normalised, each at its model's size; no labels are needed.
    Block by block, one factor for W1 makes the mean square of W1 z, and one for W2 the variance over the channels of
    the branch W2 gelu(W1 z + b1) + b2, what they are in the original. For what `adapt` cannot know from the weights:
    how smooth the tokens are, above all on a coarser grid.
    """
    was_training = model.training, original.training
    x = original.eval().stem(original.patches(original_images))
    y = model.eval().stem(model.patches(images))
    for old, new in zip(original.blocks, model.blocks, strict=True):
        assert isinstance(old, MixerBlock) and isinstance(new, MixerBlock)
        for layer, strength in ((new.token_mixing.fc1, _hidden), (new.token_mixing.fc2, _branch)):
            wanted, got = strength(old, x), strength(new, y)
            layer.weight.mul_((wanted / got).sqrt() if got > 0 else 1.0)
        x, y = old(x), new(y)
    model.train(was_training[0])
    original.train(was_training[1])


def _hidden(block: MixerBlock, x: Tensor) -> Tensor:
    return F.linear(block.columns(block.norm1(x)), block.token_mixing.fc1.weight).square().mean()


def _branch(block: MixerBlock, x: Tensor) -> Tensor:
    return (block.mix_tokens(x) - x).var(-1).mean()


def variants(original: Classifier, size: int, some: ImageSet) -> Iterator[tuple[str, Mixer]]:
    model = original.network
    assert isinstance(model, Mixer)
    (rows, cols), (old_rows, old_cols) = (
        (size // pair(model.cfg.patch_size)[0], size // pair(model.cfg.patch_size)[1]),
        model.cfg.grid,
    )
    if size % pair(model.cfg.patch_size)[0] == size % pair(model.cfg.patch_size)[1] == 0:
        for method in ("nearest", "bilinear", "bicubic"):
            new = adapt(model, image_size=size, method=method)  # type: ignore[arg-type]
            yield f"{method}, {rows}x{cols} patches", new
            calibrate(new, tensor(some, classifier(new, original)), model, tensor(some, original))
            yield f"{method}, calibrated", new
            if max(rows, cols) > max(old_rows, old_cols):
                yield f"{method}, magnified", adapt(model, image_size=size, method=method, magnified=True)  # type: ignore[arg-type]
        if rows % old_rows == cols % old_cols == 0:
            yield f"blocks, {rows}x{cols} patches", adapt(model, image_size=size, method="parts")
    if size % old_rows == size % old_cols == 0:
        patch = (size // old_rows, size // old_cols)
        yield f"patches of {patch[0]}x{patch[1]} px, {old_rows}x{old_cols} of them", adapt(model, patch_size=patch)
        if patch > pair(model.cfg.patch_size):
            yield "the same, for magnified pictures", adapt(model, patch_size=patch, magnified=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder, or its model.safetensors")
    parser.add_argument("--data-dir", help="where the run's data set is now; without it, where it was")
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="pixels, square")
    parser.add_argument("--split", default="val", help="whatever is chosen is chosen on val")
    parser.add_argument("--limit", type=int, default=0, help="images, drawn with seed 0; 0 means all")
    parser.add_argument("--calibrate", type=int, default=256, help="training images for the calibrated rows")
    args = parser.parse_args()
    original, rng = load(args.run), np.random.default_rng(0)
    data = resolve_data(original, None)
    data = dataclasses.replace(data, data_dir=args.data_dir or data.data_dir)
    images, train = open_images(data, args.split), open_images(data, "train")
    if args.limit:
        images = images.subset(rng.permutation(len(images))[: args.limit])
    some = train.subset(rng.permutation(len(train))[: args.calibrate])
    print(
        f"{len(images)} images; as trained, {original.preprocess.image_size[0]} px: top-1 "
        f"{100 * evaluate(original, images).top1:.2f} %"
    )
    print("| px | how | top-1 % |\n|---|---|---|")
    for size in args.sizes:
        for name, network in variants(original, size, some):
            print(f"| {size} | {name} | {100 * evaluate(classifier(network, original), images).top1:.2f} |", flush=True)


if __name__ == "__main__":
    main()
