"""One image to the tensor that a network takes, for a torch Dataset. Imports torch once it is called."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.inputs import as_source

if TYPE_CHECKING:
    from torch import Tensor

    from mlpmixer.inference.inputs import ImageLike


@dataclass(frozen=True)
class Transform:
    """A callable from one image, in any form that `Classifier.predict` takes, to a float32 tensor (C,H,W).

    It gives the same bits that `predict` passes to the network: resized, cropped and normalised as the model's file
    says. It can be pickled, so a `DataLoader` may run it in its workers. Errors: ValueError when the image cannot be
    read.
    """

    preprocess: Preprocess
    """The rule that the model was trained with."""

    def __call__(self, image: "ImageLike") -> "Tensor":
        import torch

        pixels = self.preprocess.array(as_source(image, self.preprocess.in_channels))
        return torch.from_numpy(self.preprocess.normalise(pixels[None])[0])
