"""Progressive resizing: a training that starts with small images and grows to the recipe's size, in one run.

The patch stays the same, so small images are few patches, and their steps are cheap: a Mixer costs what its patches
cost, not its pixels. (A patch that shrinks with the image would keep the grid, and with it nearly all of the cost.)
Where the images grow, token mixing is resampled over the finer grid as `models.mixer_resize` does it, and everything
else stays what it was.
"""

from typing import Any

from mlpmixer.models.architecture import capability
from mlpmixer.models.configs import Size
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights.adapt import adapt


def image_size(step: int, total: int, recipe: Recipe) -> Size:
    """The image size at `step` (1..total); step 0 is the size that the network is built for."""
    return next(size for size, end in recipe.stages if step <= int(end * total))


def resized(model: Any, size: Size, locality_kernel: int = 0) -> Any:
    """A new network for images of `size`, from the weights of `model`, which stays as it is.

    A resize is linear in the weights, so the resized average is the average of resized weights. With `optim.locality`
    (of this kernel size), what the kernels have learned is folded into W1 and W2 first, and they start again from zero:
    so what is resized is the function, and not two summands one of which knows no grid.
    """
    if not locality_kernel:
        return adapt(model, image_size=size)
    locality = capability(model, "locality", "optim.locality")
    new = adapt(locality.folded(model), image_size=size)
    locality.inject(new, locality_kernel)
    return new
