"""The command data preview."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import read, with_data
from mlpmixer.cli.options import OnData, with_start
from mlpmixer.config import pair
from mlpmixer.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class DataPreview(OnData):
    """A labelled picture of what the network sees: training images of DATA after the recipe's augmentation."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name, a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    out: Annotated[str, arg(metavar="FILE")]
    """The PNG file to write."""
    recipe: Annotated[str, arg(metavar="NAME")] = ""
    """Where to start from (mlpmixer list recipes); the default fits the data."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """An architecture (mlpmixer list models) instead of the recipe's."""
    augreg: Annotated[str, arg(metavar="LEVEL")] = ""
    """RandAugment and mixup of AugReg instead of the recipe's: none, light1, light2, medium1, medium2, strong1,
    strong2."""
    rows: int = 6
    """Images."""
    cols: int = 8
    """The evaluation view and augmented views of each."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "DataPreview":
        return with_start(with_data(read(cls, "mlpmixer data preview", args)), out=tyro.MISSING)

    def __call__(self) -> int:
        from mlpmixer.data.datasets import open_data
        from mlpmixer.data.preprocess import Preprocess
        from mlpmixer.training.preview import preview

        recipe, channels = self.config, (0.5,) * self.config.model.in_channels
        size = pair(recipe.model.image_size)
        shape = Preprocess(image_size=size, in_channels=len(channels), fit=recipe.data.fit, mean=channels, std=channels)
        print(
            preview(
                open_data(recipe.data), recipe.data, recipe.augment, shape, self.out, rows=self.rows, cols=self.cols
            )
        )
        return 0
