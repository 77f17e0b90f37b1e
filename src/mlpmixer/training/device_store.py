"""Images that wait on the device: small sets are moved there once, and a batch is gathered there by index."""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mlpmixer.data.store import Store

T = TypeVar("T")
SHARE = 0.25  # of the device's free memory, at most: the rest is for the training
CHUNK = 4096  # images on their way at once


def works_alone(device: torch.device) -> bool:
    """Whether the host only tells the device what to do, and should not wait for it. Not so of a CPU; MPS is treated
    like one."""
    return device.type == "cuda"


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; on CUDA through page-locked memory, so that the host does not wait for what the device
    still has to do."""
    if not works_alone(device):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Resident:
    """The images of a Store as one tensor (M,H,W,C) on a device."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.device = device
        chunks = [np.arange(a, min(a + CHUNK, len(store))) for a in range(0, len(store), CHUNK)]
        self.pixels = torch.cat([torch.from_numpy(store.array(chunk)).to(device) for chunk in chunks])

    def __len__(self) -> int:
        return len(self.pixels)

    def array(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        """(B,H,W,C) of the images at these positions, on the device."""
        return self.pixels.index_select(0, send(torch.from_numpy(indices), self.device))


def resident(images: T, device: torch.device) -> T | Resident:
    """`images` itself, or of a Store in memory its images on a CUDA device, when they take at most a quarter of what is
    free there."""
    if not works_alone(device) or not isinstance(images, Store) or not images.in_memory:
        return images
    return Resident(images, device) if images.nbytes <= SHARE * torch.cuda.mem_get_info(device)[0] else images
