"""mlpmixer data preview."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from mlpmixer.cli.arguments import Arg
from mlpmixer.cli.options import require_writable
from mlpmixer.cli.recipe_options import RecipeCommand
from mlpmixer.config import pair


@dataclass(frozen=True, kw_only=True)
class DataPreview(RecipeCommand):
    """Draw training images of DATA as the network sees them."""

    common: ClassVar[Sequence[str]] = ("image-size", "patch-size", "in-channels", "fit", "data-dir")

    out: Annotated[str, Arg("FILE")]
    """The PNG file to write."""
    rows: int = 6
    """Number of images."""
    cols: int = 8
    """Columns: the evaluation view, then augmented views."""

    def __call__(self) -> int:
        require_writable("--out", self.out, suffixes=(".png",))
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
