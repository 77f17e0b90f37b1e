"""A convolutional teacher for small photos: a wide residual network, trained on the images that the student will see
and no others.

Zagoruyko and Komodakis 2016, arXiv:1605.07146: three groups of pre-activated blocks of two 3x3 convolutions, 16, 32 and
64 channels times a width, halved grids between the groups. Trained as small networks are trained for speed: one short
schedule, large batches, bf16, channels last, everything on the device. The result is a function for train(recipe,
teacher=...): augmented images to logits.

Not run yet on a GPU. Depth 16, width 8: 11 M parameters, 9.3 GFLOPs of training an image; 80 epochs of 49,000 images
are 37 PFLOPs.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmixer.data.preprocess import standardise
from mlpmixer.hardware import choose_device, choose_precision
from mlpmixer.training import optimizers
from mlpmixer.training.augment import augment, mix, prepare_eval, statistics
from mlpmixer.training.batches import steps_per_epoch
from mlpmixer.training.device_store import is_async, on_device, to_device
from mlpmixer.training.inputs import Stores, batches, load_images
from mlpmixer.training.loop import Interrupted
from mlpmixer.training.loss import cross_entropy, soft_targets
from mlpmixer.training.recipe import Augment, Optim, Recipe, Run
from mlpmixer.training.schedule import lr_factor
from mlpmixer.weights import model_file

FILE, STATE, EVAL_BATCH = "teacher.safetensors", "teacher-state.safetensors", 500


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The network and its training."""

    depth: int = 16
    """Layers: 6 n + 4, with n blocks in each of the three groups."""
    width: int = 8
    epochs: float = 80
    batch_size: int = 512
    lr: float = 0.2
    """Peak, of SGD with Nesterov's momentum 0.9."""
    weight_decay: float = 5e-4
    warmup_epochs: float = 5
    augment: Augment = dataclasses.field(
        default_factory=lambda: Augment(pad_crop_px=4, flip=True, cutmix=1.0, mix_probability=0.5)
    )


class Block(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))); where the shape changes, x comes through a 1x1 convolution of its
    pre-activation."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(inner, outer, 1, stride, bias=False) if inner != outer or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        return (x if self.short is None else self.short(y)) + self.conv2(F.relu(self.norm2(self.conv1(y))))


class WideResNet(nn.Module):
    """Images (B,C,h,w), normalised -> logits (B,K)."""

    def __init__(self, channels: int, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is 6 n + 4, such as 10 or 16, got {depth}")
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        sizes = [16, *(16 * 2**group * width for group in range(3) for _ in range(blocks))]
        strides = [2 if i in (blocks, 2 * blocks) else 1 for i in range(3 * blocks)]
        self.blocks = nn.Sequential(
            *(Block(*io, stride) for *io, stride in zip(sizes[:-1], sizes[1:], strides, strict=True))
        )
        self.norm, self.head = nn.BatchNorm2d(sizes[-1]), nn.Linear(sizes[-1], num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))
        return logits


def train_teacher(
    recipe: Recipe, settings: Settings, out: Path, *, compiled: bool = False, stop_after_s: float | None = None,
    say: Callable[[str], None] = print,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """The teacher of a student's `recipe`: trained on its training split, seed and device, or read from `out` when it
    is there.

    Goes on where it stopped; on CUDA not to the bit, since its convolutions add up in any order. The test split is not
    looked at, validation is scored once, at the end.
    Errors: Interrupted when the time is over, after saving.
    """
    started = time.monotonic()
    device = choose_device(recipe.run.device)
    dtype = choose_precision(recipe.run.precision, device)
    stores = load_images(recipe.data, recipe.model)
    channels, num_classes = recipe.model.in_channels, len(stores.splits.classes)
    mean, std = statistics(stores.preprocess, channels, device)
    seed = recipe.run.seed
    torch.manual_seed(seed)
    model: nn.Module = WideResNet(channels, num_classes, settings.depth, settings.width)
    model = model.to(device, memory_format=torch.channels_last)
    if (out / FILE).exists():
        model.load_state_dict(model_file.read_tensors(out / FILE)[0])
        return answer_of(model, mean, std, dtype)

    forward, change = (torch.compile(model), torch.compile(augment)) if compiled else (model, augment)
    run = Run(batch_size=settings.batch_size, seed=seed)
    per_epoch = steps_per_epoch(len(stores.train), settings.batch_size)
    total, size = max(round(settings.epochs * per_epoch), 1), stores.preprocess.image_size
    rule = Optim(schedule="linear", warmup_steps=round(settings.warmup_epochs * per_epoch))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    first = 1
    if (out / STATE).exists():
        tensors, meta = model_file.read_tensors(out / STATE)
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        optimizers.load_state_tensors([sgd], tensors)
        first = meta["step"] + 1

    losses: list[Tensor] = []
    for step, pixels, labels, _ in batches(on_device(stores.train, device), run, first, total):
        draw = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(draw)
        generator = torch.Generator().manual_seed(draw)
        images = pixels if isinstance(pixels, Tensor) else to_device(torch.from_numpy(pixels), device)
        images = change(images, settings.augment, size, device if is_async(device) else generator)
        targets = soft_targets(to_device(torch.from_numpy(labels), device), num_classes)
        images, targets = mix(images, targets, settings.augment, generator)
        images = standardise(images, mean, std).contiguous(memory_format=torch.channels_last)
        for group in sgd.param_groups:
            group["lr"] = settings.lr * lr_factor(step, total, rule)
        model.train()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = forward(images)
        loss = cross_entropy(logits, targets, "softmax").mean()
        loss.backward()
        sgd.step()
        sgd.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if step % (10 * per_epoch) == 0 or step == total:
            say(
                f"teacher: step {step:,} of {total:,}, loss {torch.stack(losses).mean().item():.4f}, "
                f"{time.monotonic() - started:.0f} s"
            )
            losses.clear()
        if stop_after_s is not None and time.monotonic() - started > stop_after_s and step < total:
            tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | optimizers.state_tensors([sgd])
            model_file.write_tensors(out / STATE, tensors, {"step": step})
            raise Interrupted(step, out)
    answer = answer_of(model, mean, std, dtype)
    val_top1 = top1(answer, stores, device)
    model_file.write_tensors(
        out / FILE, model.state_dict(), {"val_top1": val_top1, "settings": dataclasses.asdict(settings)}
    )
    say(f"teacher: {sum(p.numel() for p in model.parameters()):,} parameters, validation top-1 {100 * val_top1:.2f} %")
    return answer


def answer_of(model: nn.Module, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Images (B,C,h,w) in 0..255 -> logits (B,K)."""
    model = model.eval().requires_grad_(False)

    def answer(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = model(standardise(images, mean, std).contiguous(memory_format=torch.channels_last))
        return logits

    return answer


@torch.no_grad()
def top1(answer: Callable[[Tensor], Tensor], stores: Stores, device: torch.device) -> float:
    """Share of right answers on the validation split."""
    right = 0
    for a in range(0, len(stores.val), EVAL_BATCH):
        indices = np.arange(a, min(a + EVAL_BATCH, len(stores.val)))
        images = prepare_eval(torch.from_numpy(stores.val.array(indices)).to(device))
        right += int((answer(images).argmax(1).cpu().numpy() == stores.val.labels[indices]).sum())
    return right / len(stores.val)
