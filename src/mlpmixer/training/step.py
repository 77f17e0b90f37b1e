"""Step: one optimizer update, and what it is made from: the images of a run and the model before the first step."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.image_set import ImageSet, Splits
from mlpmixer.data.images import Pixels
from mlpmixer.data.preprocess import Preprocess, standardise
from mlpmixer.data.store import Store
from mlpmixer.data.streaming.datasets import StreamedSplits, is_streamed, open_streamed
from mlpmixer.models import kernels, locality, mirror
from mlpmixer.models.architecture import Build, build, build_custom, capability
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.initialization import set_head_bias, whiten_stem
from mlpmixer.models.mixer import Mixer
from mlpmixer.training import optimizers as optim
from mlpmixer.training import progressive
from mlpmixer.training.augment import alter, augment, mix, normalise, resize, statistics
from mlpmixer.training.batches import Images, Rows, Streamed
from mlpmixer.training.device_store import resident, send, works_alone
from mlpmixer.training.distillation import Teacher, make_teacher
from mlpmixer.training.distributed import Ranks, exchanging
from mlpmixer.training.loss import loss_of, soft_targets
from mlpmixer.training.recipe import Recipe
from mlpmixer.training.stream import Stream
from mlpmixer.weights import model_file
from mlpmixer.weights.adapt import adapt_to, reset_head

Start = tuple[Mixer, model_file.ModelMeta] | Build
"""Trained weights, or what builds another network than a Mixer."""
SAMPLE_VALUES = 1 << 26  # half a GiB in float64


@dataclass(frozen=True)
class Stores:
    """The images of a run as arrays, and what was left out."""

    splits: Splits | StreamedSplits
    preprocess: Preprocess
    train: Store | Stream
    val: Store

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(name, reason) of the images that could not be read, at the start or since."""
        return [*self.train.bad, *self.val.bad]

    def share_bad(self, ranks: Ranks) -> None:
        """Let every process know the images that any of them could not read."""
        for images in (self.train, self.val):
            for found in ranks.gather(images.bad):
                images.note_bad(found)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on: the classes, the number of training images, and of what shards they
        are."""
        shards = self.train.fingerprint if isinstance(self.train, Stream) else ""
        return {"classes": list(self.splits.classes), "train_images": len(self.train), "shards": shards}


def nothing(**_: object) -> None: ...


class Step:
    """One optimizer update as a function of (step, learning-rate factor, batch): forward, loss, backward, clip,
    step."""

    def __init__(
        self,
        recipe: Recipe,
        stores: Stores,
        device: torch.device,
        dtype: torch.dtype,
        start: Start | None = None,
        teacher: Teacher | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008 (a value)
        resumed: bool = False,
    ) -> None:
        torch.manual_seed(recipe.run.seed)
        self.recipe, self.stores, self.device, self.dtype, self.ranks = recipe, stores, device, dtype, ranks
        model = first_model(recipe, stores, start, resumed)
        if isinstance(model, Mixer):
            if recipe.optim.locality:
                locality.inject(model, recipe.optim.locality)
            model.checkpointing = recipe.run.checkpointing
        model.to(device)
        averaged = recipe.optim.ema_decay or recipe.optim.average_last
        self.take(model, copy.deepcopy(model).eval() if averaged else model)
        self.alter = alter
        self.begin: Callable[[], object] = nothing
        if recipe.run.compile and works_alone(device):
            self.alter = torch.compile(alter)
            self.begin = torch.compiler.cudagraph_mark_step_begin
        self.images: Images[Pixels | Tensor] | Streamed = resident(stores.train, device)
        self.statistics = statistics(stores.preprocess, recipe.model.in_channels, device)
        self.teacher = teacher or make_teacher(None, recipe.distill, stores.train, stores.splits.classes, device, dtype)
        self.gradients = self.backward_up_the_slope if recipe.optim.sam_rho else self.backward
        self.labels_of = labels_on(device, stores.train)
        self.size = pair(recipe.model.image_size)  # of the augmented images, before they become the network's size
        class_weights: Tensor | None = None
        if recipe.data.class_weights == "balanced":
            if isinstance(stores.train, Stream):
                raise ValueError(
                    "data.class_weights=balanced needs the labels before training; streamed data has none to count"
                )
            counts = np.bincount(stores.train.labels, minlength=recipe.model.num_classes)
            class_weights = torch.tensor(
                counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32, device=device
            )
        self.loss = loss_of(recipe.optim, recipe.distill, class_weights)

    def take(self, model: nn.Module, average: nn.Module) -> None:
        """Train this network from here on, with fresh optimizers; `average` is the same one where nothing is
        averaged."""
        self.model, self.average = model, average
        self.kernels = choose_kernels(model, self.recipe, self.device)
        if average is not model:
            choose_kernels(average, self.recipe, self.device)
        self.optimizers = optim.make_optimizers(model, self.recipe.optim)
        self.keep: Callable[..., None] = nothing
        if self.recipe.optim.mirror and isinstance(model, Mixer):
            self.keep = partial(mirror.keep, mirror.symmetric(model))
        self.network: nn.Module = model
        self.learning: list[bool] = []  # which parameters do: not known before the first step

    @property
    def image_size(self) -> tuple[int, int]:
        """Pixels (height, width) that the network takes now."""
        return pair((self.model.cfg if isinstance(self.model, Mixer) else self.recipe.model).image_size)

    def resize(self, size: progressive.Size) -> None:
        """Go on with images of this size: weights and average are resized, and the optimizers start anew for what has
        another shape."""
        if pair(size) == self.image_size:
            return
        assert isinstance(self.model, Mixer) and isinstance(self.average, Mixer)
        optimizers, kernel_size = self.optimizers, self.recipe.optim.locality
        model = progressive.resized(self.model, size, kernel_size)
        self.take(model, model if self.average is self.model else progressive.resized(self.average, size, kernel_size))
        optim.carry_over(optimizers, self.optimizers)

    def prepare(self, step: int, factor: float) -> None:
        """Set the rates and the parameters that learn in a step; when those are others than before, tell who exchanges
        the gradients."""
        optim.prepare(self.optimizers, step, factor)
        learning = [p.requires_grad for p in self.model.parameters()]
        if learning != self.learning:
            self.learning, self.network = learning, self.ranks.parallel(self.model)
            self.forward: Callable[[Tensor], Tensor] = self.network
            if self.recipe.run.compile:
                self.forward = torch.compile(self.network, mode=self.recipe.run.compile_mode)

    def rows(self, n: int) -> Rows:
        """Which rows of a batch of n images this process works on; of those that come after them one is mixed into the
        last."""
        return self.ranks.rows(n, lent=bool(self.recipe.augment.mixup or self.recipe.augment.cutmix))

    def __call__(self, step: int, factor: float, indices: np.ndarray, pixels: Pixels | Tensor) -> tuple[Tensor, Tensor]:
        """The images with these numbers (B,), of which this process has its `rows` (b,H,W,C): one update of the
        weights.

        Returns its part of (mean loss, share of right answers), both on the device: over all processes they add up to
        those of the batch. Everything random depends on (seed, step); what is drawn within the network, on the process
        too. On CUDA the host only says what is to be done and never waits for it.
        """
        cfg, rows = self.recipe, self.rows(len(indices))
        seed, own_seed = (
            int(np.random.SeedSequence([cfg.run.seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
            for rank in (0, self.ranks.rank)
        )
        torch.manual_seed(seed)  # on CUDA, of the augmentation
        self.begin()
        generator = torch.Generator().manual_seed(seed)
        numbers = indices[rows.numbers]
        labels = self.labels_of(numbers)
        targets = torch.cat([soft_targets(labels, cfg.model.num_classes), self.teacher.before(numbers)], 1)
        images = pixels if isinstance(pixels, Tensor) else send(torch.from_numpy(pixels), self.device)
        images = self.alter(
            images, cfg.augment, self.size, self.device if works_alone(self.device) else generator, rows
        )
        images, targets = mix(images, targets, cfg.augment, generator, rows)
        torch.manual_seed(own_seed)  # whatever a teacher draws
        targets = torch.cat([targets, self.teacher.after(images)], 1)  # (B, K); with a teacher (B, 2K)
        images = standardise(resize(images, self.image_size), *self.statistics)

        self.prepare(step, factor)
        loss, right = self.gradients(images, targets, own_seed, rows.of)
        if cfg.optim.clip_norm:
            optim.clip_gradients(self.model, cfg.optim.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.keep(gradients=False)  # but for rounding they still were
        return loss, right

    def average_in(self, weight: float) -> None:
        """Move the average by this share towards the weights; where nothing is averaged, they are one."""
        if self.average is not self.model:
            optim.update_average(self.average, self.model, weight)

    def backward(self, images: Tensor, targets: Tensor, seed: int, of: int) -> tuple[Tensor, Tensor]:
        """Add the gradients of the mean loss of a batch of `of` images, with these ones of it taken part by part.

        Returns what these images add to its mean loss and to its share of right answers.
        """
        cfg = self.recipe
        torch.manual_seed(seed)  # dropout and stochastic depth
        self.model.train()
        loss_sum, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        parts = list(zip(images.chunk(cfg.run.accumulate), targets.chunk(cfg.run.accumulate), strict=True))
        for number, (part, wanted) in enumerate(parts, 1):
            with exchanging(self.network, now=number == len(parts)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    logits = self.forward(part)
                loss = self.loss(logits, wanted).sum() / of
                # the processes' gradients are averaged
                (loss * self.ranks.size).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            right += (logits.detach().argmax(1) == wanted[:, : logits.shape[1]].argmax(1)).sum() / of
        self.keep(gradients=True)
        return loss_sum, right

    def backward_up_the_slope(self, images: Tensor, targets: Tensor, seed: int, of: int) -> tuple[Tensor, Tensor]:
        """`backward` twice, with the same dropout: the gradients are the second pass's, loss and right answers the
        first one's."""
        result = self.backward(images, targets, seed, of)
        with optim.up_the_slope(self.model, self.recipe.optim.sam_rho):
            self.backward(images, targets, seed, of)
        return result

    def plain(self) -> nn.Module:
        """What is saved: the averaged model, with its kernels folded into the weights."""
        if self.recipe.optim.locality:
            assert isinstance(self.average, Mixer)
            return locality.folded(self.average)
        return self.average

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: weights, their average, the state of the optimizers."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()} | optim.state_tensors(self.optimizers)
        if self.average is not self.model:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        return tensors

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors()` gave."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        if self.average is not self.model:
            self.average.load_state_dict(
                {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
            )
        optim.load_state_tensors(self.optimizers, tensors)


def choose_kernels(model: nn.Module, recipe: Recipe, device: torch.device) -> str:
    """Let `model` run on what `recipe.run.kernels` says, in place, and name it. ValueError when that cannot be had."""
    if recipe.run.kernels == "torch" or device.type != "cpu":
        return "torch"
    reason = "the network is left to torch.compile" if recipe.run.compile else "the network is no Mixer"
    if isinstance(model, Mixer) and not recipe.run.compile:
        reason = kernels.unsupported_reason(model)
        if not reason:
            kernels.install(model)
            return "compiled"
    if recipe.run.kernels == "compiled":
        raise ValueError(f"run.kernels=compiled cannot be had: {reason}; leave it at auto, or take torch")
    return f"torch ({reason})"


def first_model(recipe: Recipe, stores: Stores, start: Start | None, resumed: bool = False) -> Any:
    """The model before the first step: fresh, or from trained weights, whose head is kept when it is for the same
    classes.

    resumed: its weights will be loaded, so that they may be any.
    """
    if start is not None and not isinstance(start, tuple):
        return build_custom(start, recipe.model)
    size = progressive.image_size(0, 1, recipe)
    cfg = recipe.model.adapted(image_size=size)
    model: Any
    if resumed:
        return build(cfg)
    if start is None:
        model = build(cfg)
        if recipe.init.stem == "whitened":
            capability(model, "patches", "init.stem=whitened")
            whiten_stem(model, resize(augmented_sample(recipe, stores), pair(size)))
        set_head_bias(model, recipe.init.head_bias)
        if recipe.optim.mirror:
            capability(model, "mirror", "optim.mirror").begin(model)
        return model
    pretrained, meta = start
    model = adapt_to(pretrained, cfg, recipe.init.resize, recipe.init.magnified)
    if meta.classes != stores.splits.classes:
        reset_head(model)
        set_head_bias(model, recipe.init.head_bias)
    if recipe.optim.mirror and (share := capability(model, "mirror", "optim.mirror").asymmetry(model)) > 1e-3:
        raise ValueError(
            f"optim.mirror keeps a symmetric network symmetric, but {100 * share:.0f} % of a layer of "
            f"{recipe.init.weights} is not; leave it out, or start from a run that was trained with it"
        )
    return model


def labels_on(device: torch.device, images: Store | Stream) -> Callable[[np.ndarray], Tensor]:
    """The labels of training images by number, on the device: from a table of all, or as they came with a streamed
    batch."""
    if isinstance(images, Stream):
        return lambda numbers: send(torch.from_numpy(images.labels_of(numbers)), device)
    table = torch.from_numpy(images.labels).to(device)
    return lambda numbers: table.index_select(0, send(torch.from_numpy(numbers), device))


def sample_of(images: Store | Stream) -> Pixels:
    """(N, H, W, C): up to 5,000 images from everywhere, of at most SAMPLE_VALUES values in all."""
    per_image = int(np.prod(images.preprocess.image_size)) * images.preprocess.in_channels
    return images.sample(min(len(images), 5000, max(SAMPLE_VALUES // per_image, 1)))


def augmented_sample(recipe: Recipe, stores: Stores) -> Tensor:
    """Some training images as the network sees them: augmented and normalised, (N, in_channels, H, W)."""
    images = torch.from_numpy(sample_of(stores.train))
    targets = soft_targets(torch.zeros(len(images), dtype=torch.long), recipe.model.num_classes)
    generator = torch.Generator().manual_seed(recipe.run.seed)
    return normalise(
        augment(images, targets, recipe.augment, pair(recipe.model.image_size), generator)[0], stores.preprocess
    )


def load_images(data: Data, model: NetworkConfig, pretrained: Preprocess | None = None) -> Stores:
    """Open, split and decode the images of a run. ValueError when there are none, or too many cannot be read.

    Pixels are normalised by the mean and deviation of the training images, or as trained weights have seen them.
    """
    splits = open_streamed(data) if is_streamed(data) else open_data(data)
    channels = model.in_channels
    shape = Preprocess(
        image_size=pair(model.image_size),
        in_channels=channels,
        fit=data.fit,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )

    def store(images: ImageSet, form: Preprocess) -> Store:
        return Store(images, form, cache_mib=data.cache_mib, workers=data.workers, max_bad_share=data.max_bad_share)

    larger = shape.scaled(data.train_scale)
    train_store = (
        Stream(splits.train, splits.labels, larger, data)
        if isinstance(splits, StreamedSplits)
        else store(splits.train, larger)
    )
    val_store = store(splits.val, shape)
    if not len(train_store) or not len(val_store):
        raise ValueError(
            f"{data.name}: {len(train_store)} training and {len(val_store)} validation images are left; both splits "
            f"need some"
        )
    if pretrained:
        return Stores(
            splits, dataclasses.replace(shape, mean=pretrained.mean, std=pretrained.std), train_store, val_store
        )
    sample = sample_of(train_store)
    mean = sample.mean((0, 1, 2), dtype=np.float64) / 255
    std = np.maximum(sample.std((0, 1, 2), dtype=np.float64) / 255, 1 / 255)
    exact = dataclasses.replace(
        shape, mean=tuple(round(float(m), 4) for m in mean), std=tuple(round(float(s), 4) for s in std)
    )
    return Stores(splits, exact, train_store, val_store)


class Kept:
    """`load_images` for runs one after the other: what it gave last is given again when the same is asked for, and not
    decoded twice."""

    def __init__(self) -> None:
        self._asked: object = None
        self._stores: Stores | None = None

    def __call__(self, data: Data, model: NetworkConfig, pretrained: Preprocess | None = None) -> Stores:
        asked = (data, pair(model.image_size), model.in_channels, pretrained)
        if self._stores is None or asked != self._asked:
            self._stores = None  # before the next ones take their memory
            self._stores, self._asked = load_images(data, model, pretrained), asked
        return self._stores
