"""Which images, how they are split, and how they become arrays of the model's size. No torch."""

from dataclasses import dataclass
from typing import Literal

from mlpmixer.config import Config, require

Fit = Literal["crop", "pad", "squash", "short_side_crop", "vit_jax_eval", "bv_resmall_crop", "bv_resize_crop"]


@dataclass(frozen=True, kw_only=True)
class Data(Config, owner="data"):
    """Which images, how they are split, and how they become arrays of the model's size."""

    name: str = "digits"
    """A named data set, a path (folder or parquet), or hf:owner/name."""
    data_dir: str | None = None
    """Where the files of a named data set are (DIR or DIR/NAME)."""
    fit: Fit = "crop"
    """What to do with images of another shape: crop the centre, pad to the shape, or squash; or as published weights
    are evaluated (short_side_crop: timm; vit_jax_eval, bv_resmall_crop, bv_resize_crop: the official code)."""
    val_fraction: float = 0.1
    """Share of train cut off, stratified, as validation when the data has none."""
    test_fraction: float = 0.2
    """Share cut off, stratified, as test when the data has none (digits, plain folders)."""
    train_fraction: float = 1.0
    """Share of train that is kept, of each class, once val and test are cut. A smaller share is part of a larger
    one."""
    split_seed: int = 0
    """Seed of all cuts."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs the loss by inverse class frequency."""
    train_scale: float = 1.0
    """Training images are kept this much larger than the model's input, so that random crops stay sharp."""
    max_bad_share: float = 0.25
    """A run stops at the start when a larger share of the images cannot be read."""
    cache_mib: int = 4096
    """Decoded images up to this size stay in memory (uint8; float32 for vit_jax_eval); larger sets are decoded for each
    batch."""
    workers: int = 0
    """Decoding threads; 0 means one per CPU core. Batches do not depend on it."""
    stream: bool = False
    """Read training images from shards while training, for data larger than memory and disk; tar shards and web
    addresses always are."""
    lanes: int = 16
    """Places in the shards that a streamed batch is drawn from, part of the order of the images. As many processes as
    divide it read each shard once between them."""
    buffer: int = 8192
    """Streamed images held in memory as they are stored; those of a lane are shuffled among buffer / (2 lanes)
    neighbours."""
    classes: str = ""
    """Names of the classes of shards that do not tell: a file with one a line, or just how many there are."""

    def validate(self) -> None:
        require(1 <= self.lanes <= 1024, f"data.lanes must be in 1..1024, got {self.lanes}")
        require(self.buffer >= 1, f"data.buffer must be at least 1, got {self.buffer}")
        require(0 < self.val_fraction < 1, f"data.val_fraction must be in (0, 1), got {self.val_fraction}")
        require(0 < self.test_fraction < 1, f"data.test_fraction must be in (0, 1), got {self.test_fraction}")
        require(0 < self.train_fraction <= 1, f"data.train_fraction must be in (0, 1], got {self.train_fraction}")
        require(self.train_scale >= 1, f"data.train_scale must be at least 1, got {self.train_scale}")
