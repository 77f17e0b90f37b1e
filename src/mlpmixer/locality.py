"""Locality injection: token mixing learns through convolutions over the patch grid, and is saved as a plain Mixer.

Letters: S patches, an h x w grid (of one part, when there are parts), DS tokens_mlp_dim, k kernel size.

A row of W1 (DS, S) and a column of W2 (S, DS) are maps over the grid. Training learns W and a k x k kernel, one per matrix and so the
same for every channel; the network uses W + conv(W, kernel), zero-padded. For W2 that is a convolution of the tokens it writes, for W1
one of the tokens it reads (by the mirrored kernel: <conv(w), x> = <w, conv'(x)>), each beside the identity. But it works on weights
instead of activations, so its cost does not grow with the batch. It is linear and stays on its side of the GELU, so it folds exactly.
(Ding et al. 2021, "RepMLP", arXiv:2105.01883, folds convolutions into fully-connected layers; arXiv:2112.11081, table 4: into ResMLP's.)
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmixer.model import Mixer, MixerBlock


class LocalLinear(nn.Linear):
    """A linear layer with the weight W + conv(W, kernel): maps in the rows of W (a layer that reads the grid) or in its columns.

    The kernel starts as zeros. Its shape is that of a convolution, (1, 1, k, k): no matrix, so it is AdamW's, and does not decay.
    """

    def __init__(self, plain: nn.Linear, grid: tuple[int, int], size: int, *, columns: bool) -> None:
        super().__init__(plain.in_features, plain.out_features, device="meta")  # draws nothing from the global generator
        self.grid, self.columns = grid, columns
        self.weight, self.bias = plain.weight, plain.bias
        self.kernel = nn.Parameter(plain.weight.new_zeros(1, 1, size, size))

    def whole_weight(self) -> Tensor:
        """W + conv(W, kernel), in the shape of W and at least in its precision."""
        maps, size = self.weight.T if self.columns else self.weight, self.kernel.shape[-1]
        # not conv2d, which takes bfloat16 under autocast and TF32 on CUDA: what trains must be what is saved
        near = F.unfold(maps.reshape(-1, 1, *self.grid), size, padding=size // 2)  # (maps, k*k, S)
        local = (near * self.kernel.reshape(-1, 1)).sum(1)
        return self.weight + (local.T if self.columns else local)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.whole_weight(), self.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The plain layer that is the same function."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        plain.weight, plain.bias = nn.Parameter(self.whole_weight().contiguous()), self.bias
        return plain


def inject(model: Mixer, size: int) -> None:
    """Let every token-mixing MLP of `model` learn through size x size kernels (size odd), in place. The function stays the same."""
    for block in model.blocks:
        assert isinstance(block, MixerBlock)
        mlp, grid = block.token_mixing, block.part_grid
        mlp.fc1 = LocalLinear(mlp.fc1, grid, size, columns=False)
        mlp.fc2 = LocalLinear(mlp.fc2, grid, size, columns=True)


def folded(model: Mixer) -> Mixer:
    """A new plain Mixer that is the same function as `model`, its kernels in W1 and W2."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        assert isinstance(block, MixerBlock)
        mlp = block.token_mixing
        mlp.fc1, mlp.fc2 = (layer.folded() if isinstance(layer, LocalLinear) else layer for layer in (mlp.fc1, mlp.fc2))
    return model
