"""One update of the weights: augment, forward, loss, backward, clip, step."""

import copy
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from mlpmixer.config import pair
from mlpmixer.data.preprocess import standardise
from mlpmixer.models.architecture import capability, has
from mlpmixer.models.checkpointing import buffers_unchanged
from mlpmixer.models.configs import Size
from mlpmixer.training.augment import augment, mix, resize, statistics
from mlpmixer.training.averaging import update_average
from mlpmixer.training.batches import Batch, rows_per_batch
from mlpmixer.training.device_store import is_async, on_device, to_device
from mlpmixer.training.distillation import OnlineTeacher, StoredTeacher, Teacher
from mlpmixer.training.distributed import ProcessGroup, gradient_exchange
from mlpmixer.training.inputs import Stores
from mlpmixer.training.loss import soft_targets, training_loss
from mlpmixer.training.optimizers import (
    clip_gradients,
    load_state_tensors,
    make_optimizers,
    sam_perturbation,
    set_learning_rates,
    state_tensors,
    transfer_optimizer_state,
)
from mlpmixer.training.parts import Parts, can_split, num_parts
from mlpmixer.training.progressive import image_size, resized
from mlpmixer.training.recipe import Recipe, variant
from mlpmixer.training.start import Start, choose_kernels, initial_model, require_one_part
from mlpmixer.training.stream import Stream


class TrainingStep:
    """One update as a function of (batch, learning rate), and all that it changes: weights and optimizers.

    B images of a batch, of which this process has b; K classes.
    """

    def __init__(
        self,
        recipe: Recipe,
        stores: Stores,
        device: torch.device,
        dtype: torch.dtype,
        start: Start | None = None,
        teacher: Teacher | None = None,
        group: ProcessGroup = ProcessGroup(),  # noqa: B008 (a value)
        resumed: bool = False,
    ) -> None:
        """resumed: the weights will be loaded by `load_tensors`, so they are not computed."""
        torch.manual_seed(recipe.run.seed)
        self.recipe, self.stores, self.device, self.dtype = recipe, stores, device, dtype
        self.teacher, self.group = teacher, group
        model = initial_model(recipe, stores, start, resumed).to(device)
        require_one_part(model, recipe.run.accumulate, "run.accumulate")
        require_one_part(model, group.size, "training with several processes")
        self.image_size = pair(image_size(0, 1, recipe))  # pixels (height, width) that the network takes now
        averaged = recipe.optim.ema_decay or recipe.optim.average_last
        self.set_model(model, copy.deepcopy(model).eval() if averaged else model)

        self.images = on_device(stores.train, device)
        self.set_batch_size(recipe.run.images_per_step)
        self.size = pair(recipe.model.image_size)  # of the augmented images, before they get the network's size
        self.statistics = statistics(stores.preprocess, recipe.model.in_channels, device)
        self.class_weights = class_weights(recipe, stores, device)
        self.compiles_augmentation = recipe.run.compile and is_async(device)
        self.augment = torch.compile(augment) if self.compiles_augmentation else augment

    def set_batch_size(self, batch_size: int) -> None:
        """Take this many images per step, over all processes, from now on."""
        self.recipe = variant(self.recipe, run={"batch_size": batch_size})
        augment = self.recipe.augment
        mixes = bool(augment.mixup or augment.cutmix)  # then the last row with the next process's first
        self.rows = self.group.rows(rows_per_batch(len(self.stores.train), self.recipe.run), overlap=mixes)

    def set_model(self, model: nn.Module, average: nn.Module) -> None:
        """Train this network from now on, with fresh optimizers; `average` is the same one if nothing is averaged."""
        self.model, self.average = model, average
        self.kernels = choose_kernels(model, self.recipe, self.device)
        if average is not model:
            choose_kernels(average, self.recipe, self.device)
        self.optimizers = make_optimizers(model, self.recipe.optim)
        self.mirror = capability(model, "mirror", "optim.mirror") if self.recipe.optim.mirror else None
        self.symmetric = self.mirror.symmetric(model) if self.mirror else None
        self.learning: list[bool] = []  # which parameters learn: not known before the first step
        self.parts: Parts | None = None
        self.flops = sum(layer.flops for layer in self.recipe.model.layers()) / prod(pair(self.recipe.model.image_size))
        """FLOPs of the forward pass for each pixel of an image."""
        self.can_split = can_split(model, self.recipe, self.device, self.group)

    def resize(self, size: Size) -> None:
        """Continue with images of this size: weights and average are resized, optimizers keep the state that fits."""
        if pair(size) == self.image_size:
            return
        old, locality_kernel, self.image_size = self.optimizers, self.recipe.optim.locality, pair(size)
        model = resized(self.model, size, locality_kernel)
        average = model if self.average is self.model else resized(self.average, size, locality_kernel)
        self.set_model(model, average)
        transfer_optimizer_state(old, self.optimizers)

    def __call__(self, batch: Batch, lr_factor: float) -> tuple[Tensor, Tensor]:
        """Update the weights with a batch, at `lr_factor` times the peak learning rates.

        Returns this process's part of (mean loss, share of right answers), both on the device: over all processes they
        add up to those of the batch. Where images may have several classes, no share is counted. Everything random
        depends on (seed, step), and what is drawn within the network on the process too. On CUDA the host never waits
        for the device.
        """
        images, targets = self.prepare(batch)
        self.set_learning_rates(batch.step, lr_factor)
        loss, right = self.compute_gradients(images, targets, batch.step)
        if self.recipe.optim.clip_norm:
            clip_gradients(self.model, self.recipe.optim.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.project_symmetric(gradients=False)  # rounding has broken their symmetry
        return loss, right

    def seed(self, step: int, rank: int) -> int:
        """The seed of what a step draws: with rank 0 the same on all processes, with its own rank on each another."""
        sequence = np.random.SeedSequence([self.recipe.run.seed, step, rank])
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images (b,C,H,W) as the network sees them, and targets (b,K), or (b,2K) with the teacher's behind."""
        shared_seed = self.seed(batch.step, 0)
        torch.manual_seed(shared_seed)  # for augmentation that draws on the device
        generator = torch.Generator().manual_seed(shared_seed)
        if self.compiles_augmentation:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        pixels, labels = batch.images, to_device(torch.from_numpy(batch.labels), self.device)
        targets = soft_targets(labels, self.recipe.model.num_classes)
        if isinstance(self.teacher, StoredTeacher):
            targets = torch.cat([targets, self.teacher.targets(batch.numbers)], 1)
        images = pixels if isinstance(pixels, Tensor) else to_device(torch.from_numpy(pixels), self.device)
        source = self.device if is_async(self.device) else generator
        images = self.augment(images, self.recipe.augment, self.size, source, self.rows)
        images, targets = mix(images, targets, self.recipe.augment, generator, self.rows)
        torch.manual_seed(self.seed(batch.step, self.group.rank))  # for what a teacher draws
        if isinstance(self.teacher, OnlineTeacher):
            targets = torch.cat([targets, self.teacher.targets(images)], 1)
        return standardise(resize(images, self.image_size), *self.statistics), targets

    def set_learning_rates(self, step: int, factor: float) -> None:
        """Set the rates of a step and the parameters that learn; when those change, wrap the network again."""
        set_learning_rates(self.optimizers, step, factor)
        learning = [p.requires_grad for p in self.model.parameters()]
        if learning != self.learning:
            run = self.recipe.run
            self.learning, self.parallel = learning, self.group.data_parallel(self.model)
            self.network = torch.compile(self.parallel, mode=run.compile_mode) if run.compile else self.parallel
            self.parts = None

    def compute_gradients(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of a batch; loss and right answers as in `__call__`."""
        backward = self.sam_backward if self.recipe.optim.sam_rho else self.backward
        return backward(images, targets, step)

    def backward(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Add the gradients of the batch's mean loss, accumulated over its parts (`run.accumulate`)."""
        torch.manual_seed(self.seed(step, self.group.rank))  # for dropout and stochastic depth
        self.model.train()
        loss_sum, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        parts = list(
            zip(images.chunk(self.recipe.run.accumulate), targets.chunk(self.recipe.run.accumulate), strict=True)
        )
        for number, (part, wanted) in enumerate(parts, 1):
            with gradient_exchange(self.parallel, now=number == len(parts)):
                for loss, hits in self.on_threads(part, wanted):
                    loss_sum += loss
                    right += hits
        self.project_symmetric(gradients=True)
        return loss_sum, right

    def on_threads(self, images: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`part_backward` of the images, on a CPU in parts with a thread each."""
        threads = torch.get_num_threads()
        num = num_parts(threads, len(images), self.flops * images[0, 0].numel()) if self.can_split else 1
        if num == 1:
            return [self.part_backward(self.network, images, targets)]
        each = max(1, threads // num)
        if self.parts is None or (len(self.parts.networks), self.parts.threads) != (num, each):
            self.parts = Parts(self.model, num, each)
        return self.parts.run(self.part_backward, images, targets)

    def part_backward(
        self, network: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of some images of a batch; their part of its mean loss, and of its right answers."""
        with self.autocast():
            logits = network(images)
        loss = training_loss(logits, targets, self.recipe.optim, self.recipe.distill, self.class_weights)
        loss = loss.sum() / self.rows.batch_size
        # the processes' gradients are averaged
        (loss * self.group.size).backward()  # type: ignore[no-untyped-call]
        if self.stores.multi_label:
            return loss.detach(), torch.zeros((), device=self.device)
        right = (logits.detach().argmax(1) == targets[:, : logits.shape[1]].argmax(1)).sum()
        return loss.detach(), right / self.rows.batch_size

    def sam_backward(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """`backward` twice with the same dropout: gradients of the second pass, loss and right answers of the first."""
        result = self.backward(images, targets, step)
        with sam_perturbation(self.model, self.recipe.optim.sam_rho), buffers_unchanged(self.model):
            self.backward(images, targets, step)
        return result

    def project_symmetric(self, *, gradients: bool) -> None:
        """Replace the weights or their gradients by the nearest symmetric ones, if optim.mirror is on."""
        if self.mirror:
            self.mirror.keep(self.symmetric, gradients=gradients)

    def autocast(self) -> torch.autocast:
        """The context in which the network computes in the run's precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def average_in(self, weight: float) -> None:
        """Move the average by this share towards the weights; nothing if nothing is averaged."""
        if self.average is not self.model:
            update_average(self.average, self.model, weight)

    def plain_model(self) -> nn.Module:
        """The network to save: the average, with what only training needs folded into its weights."""
        if not has(self.average, "folding"):
            return self.average
        plain: nn.Module = capability(self.average, "folding", "saving").folded(self.average)
        return plain

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: weights, their average, the state of the optimizers."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()} | state_tensors(self.optimizers)
        if self.average is not self.model:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        return tensors

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors()` returned."""
        networks = {"model.": self.model} | ({"average.": self.average} if self.average is not self.model else {})
        for prefix, network in networks.items():
            network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        load_state_tensors(self.optimizers, tensors)


def class_weights(recipe: Recipe, stores: Stores, device: torch.device) -> Tensor | None:
    """Weights (K,) of the classes in the loss by `data.class_weights`: the inverse of their frequency, or None.

    Errors: ValueError for streamed images, whose labels are not known before training, and for several labels per
    image.
    """
    if recipe.data.class_weights != "balanced":
        return None
    if stores.multi_label:
        raise ValueError("data.class_weights=balanced weights each image by its class, but these have several or none")
    if isinstance(stores.train, Stream):
        raise ValueError(
            "data.class_weights=balanced counts the labels before training; streamed data does not have them"
        )
    counts = np.bincount(stores.train.labels, minlength=recipe.model.num_classes)
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=device)
