"""Small training sets on the device: moved there once, their batches are gathered there by index."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mlpmixer.data.store import Store

T = TypeVar("T")
SHARE = 0.25  # of the device's free memory at most: the rest is for the training
CHUNK = 4096  # images moved at once


def is_async(device: torch.device) -> bool:
    """Whether the device works on its own while the host goes on, so that the host should never wait for it: CUDA."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; on CUDA through page-locked memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if is_async(device) else tensor.to(device)


class DeviceStore:
    """The images of a Store as one tensor (M,H,W,C) on a device, and their labels (M,)."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.device, self.labels = device, store.labels
        chunks = [np.arange(a, min(a + CHUNK, len(store))) for a in range(0, len(store), CHUNK)]
        self.pixels = torch.cat([torch.from_numpy(store.array(chunk)).to(device) for chunk in chunks])

    def __len__(self) -> int:
        return len(self.pixels)

    def array(self, indices: np.ndarray) -> Tensor:
        """(B,H,W,C) of the images at these positions, on the device."""
        return self.pixels.index_select(0, to_device(torch.from_numpy(indices), self.device))


def on_device(images: T, device: torch.device) -> T | DeviceStore:
    """A Store in memory as a DeviceStore, if the device is CUDA and a quarter of its free memory holds the images.

    Everything else is returned as it is.
    """
    if not is_async(device) or not isinstance(images, Store) or not images.in_memory:
        return images
    return DeviceStore(images, device) if images.nbytes <= SHARE * torch.cuda.mem_get_info(device)[0] else images
