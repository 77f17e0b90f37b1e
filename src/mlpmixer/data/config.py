"""The settings of the data: which images, how they are split and resized."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from mlpmixer.config import Config, require
from mlpmixer.data.paths import Layout

MOST_FOLDS = 1000
Fit = Literal["crop", "pad", "squash", "short_side_crop", "vit_jax_eval", "bv_resmall_crop", "bv_resize_crop"]


@dataclass(frozen=True, kw_only=True)
class Data(Config, owner="data"):
    """Data set, splits, and how images become arrays of the model's size."""

    name: str = "digits"
    """A named data set (mlpmixer list datasets), a folder, a Parquet file, shards, or hf:owner/name."""
    labels: str = ""
    """CSV or TSV file, here or in the folder DATA, with the classes of its images: a column of files, a column of
    classes, and a column of splits if there are any."""
    multi_label: Literal["auto", "yes", "no"] = "auto"
    """Whether an image may have several classes, or none. auto: yes if a table or a column of lists gives an image
    several. no: a cell of the table is one class, whatever is in it."""
    layout: Layout = "auto"
    """Whether folders and files named train, val or test are splits, or classes like the others. auto: splits, except
    folders without class folders in them, and a single one beside folders of other images."""
    data_dir: str | None = None
    """Folder with the files of a named data set (DIR or DIR/NAME)."""
    fit: Fit = "crop"
    """How images of another shape are resized: crop the centre, pad, or squash; or as published weights are evaluated
    (short_side_crop: timm; vit_jax_eval, bv_resmall_crop, bv_resize_crop: the official code)."""
    val_fraction: float = 0.1
    """Share of train that becomes validation, stratified, if the data has none."""
    test_fraction: float = 0.2
    """Share of train that becomes test, stratified, if the data has none (digits, plain folders)."""
    val_is_test: bool = False
    """Use the data's own validation images as test, and cut validation from train: ImageNet's protocol, since the
    labels of its test images are not public. For data that has val but no test."""
    min_per_class: int = 1
    """Fewest images of each class that validation and test take, where their shares come to less and the class has
    more."""
    train_fraction: float = 1.0
    """Share of each class of train to use, after val and test are cut off. A smaller share is a subset of a larger."""
    folds: int = 0
    """Number of stratified parts of train, each of which is test once (cross-validation); the data's own test images
    are not used. Files with the same content are in the same part. 0 means off."""
    fold: int = 0
    """Number of the part that is test, from 1; 0: all of them, one after the other."""
    split_seed: int = 0
    """Random seed of the splits."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight each image's loss by the inverse frequency of its class."""
    train_scale: float = 1.0
    """Size at which training images are stored, relative to the model's input, so that random crops stay sharp."""
    max_bad_share: float = 0.25
    """Largest share of unreadable images with which a run starts."""
    cache_mib: int = 4096
    """Memory for decoded images, in MiB; a larger set is decoded again for each batch."""
    workers: int = 0
    """Decoding threads; 0: one per CPU core. Batches do not depend on it."""
    stream: bool = False
    """Read training images from shards while training, for data larger than memory or disk; tar shards and web
    addresses are always streamed."""
    lanes: int = 16
    """Places in the shards that a streamed batch is drawn from. If the number of processes divides it, each shard is
    read once between them."""
    buffer: int = 8192
    """Streamed images held in memory, as they are stored; shuffling is among buffer / (2 lanes) neighbours."""
    classes: str = ""
    """Class names of shards that do not state them: a file with one per line, or just the number of classes."""

    @classmethod
    def untagged(cls, values: dict[str, Any]) -> tuple[type[Self], dict[str, Any]]:
        """Recipes and models from before these fields keep the cut and the classes that they were made with."""
        return cls, {"min_per_class": 0, "multi_label": "no"} | values

    def validate(self) -> None:
        require(not (self.labels and self.stream), "data.labels is for images in files, not for streamed shards")
        require(self.name == self.name.strip(), f"data.name={self.name!r} must not begin or end with a space")
        require(
            self.folds == 0 or 2 <= self.folds <= MOST_FOLDS,
            f"data.folds must be 2 to {MOST_FOLDS:,}, or 0 for none, got {self.folds}",
        )
        require(
            0 <= self.fold <= self.folds,
            f"data.fold={self.fold} is the number of one of the parts, and data.folds is {self.folds}",
        )
        require(self.split_seed >= 0, f"data.split_seed must not be negative, got {self.split_seed}")
        require(1 <= self.lanes <= 1024, f"data.lanes must be in 1..1024, got {self.lanes}")
        require(self.buffer >= 1, f"data.buffer must be at least 1, got {self.buffer}")
        require(0 < self.val_fraction < 1, f"data.val_fraction must be in (0, 1), got {self.val_fraction}")
        require(0 < self.test_fraction < 1, f"data.test_fraction must be in (0, 1), got {self.test_fraction}")
        require(self.min_per_class >= 0, f"data.min_per_class must not be negative, got {self.min_per_class}")
        require(0 < self.train_fraction <= 1, f"data.train_fraction must be in (0, 1], got {self.train_fraction}")
        require(1 <= self.train_scale <= 16, f"data.train_scale must be in [1, 16], got {self.train_scale}")
        require(0 <= self.workers <= 1024, f"data.workers must be in 0..1024, got {self.workers}")
