"""Locality injection: token mixing learns through convolutions over the patch grid, and is saved as a plain Mixer.

Letters: S patches, an h x w grid (of one part, when there are parts), DS tokens_mlp_dim, k kernel size.

A row of W1 (DS, S) and a column of W2 (S, DS) are maps over the grid. Training learns W and a k x k kernel, one per
matrix and so the same for every channel; the network uses W + conv(W, kernel), zero-padded. For W2 that is a
convolution of the tokens it writes, for W1 one of the tokens it reads (by the mirrored kernel: <conv(w), x> = <w,
conv'(x)>), each beside the identity. But it works on weights instead of activations, so its cost does not grow with the
batch. It is linear and stays on its side of the GELU, so it folds exactly. (Ding et al. 2021, "RepMLP",
arXiv:2105.01883, folds convolutions into fully-connected layers; arXiv:2112.11081, table 4: into ResMLP's.)
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpmixer.models.mixer import Mixer, MixerBlock


def moves(grid: tuple[int, int], size: int) -> Tensor:
    """(S, S, size**2), 1 where an entry of a kernel, counted row by row, carries patch s to patch t, else 0.

    With the kernel summed over them, a convolution of a map over the grid is its product with an (S, S) matrix.
    """
    patches = grid[0] * grid[1]
    return F.unfold(torch.eye(patches).view(patches, 1, *grid), size, padding=size // 2).mT.contiguous()


class LocalLinear(nn.Linear):
    """A linear layer with the weight W + conv(W, kernel): maps in the rows of W (a layer that reads the grid) or in its
    columns.

    `moves` are those of the grid. The kernel starts as zeros. Its shape is that of a convolution, (1, 1, k, k): no
    matrix, so it is AdamW's and does not decay.
    """

    def __init__(self, plain: nn.Linear, moves: Tensor, *, columns: bool) -> None:
        super().__init__(
            plain.in_features, plain.out_features, device="meta"
        )  # draws nothing from the global generator
        self.columns = columns
        self.weight, self.bias = plain.weight, plain.bias
        size = math.isqrt(moves.shape[-1])
        self.kernel = nn.Parameter(plain.weight.new_zeros(1, 1, size, size))
        self.moves: Tensor
        self.register_buffer("moves", moves, persistent=False)

    def whole_weight(self) -> Tensor:
        """W + conv(W, kernel), in the shape of W and at least in its precision."""
        with torch.autocast(self.weight.device.type, enabled=False):  # what trains must be what is saved
            conv = (self.moves.flatten(0, 1) @ self.kernel.flatten()).view(self.moves.shape[:2])  # (S, S)
            return (
                torch.addmm(self.weight, conv.T, self.weight)
                if self.columns
                else torch.addmm(self.weight, self.weight, conv)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.whole_weight(), self.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The plain layer that is the same function."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        plain.weight, plain.bias = nn.Parameter(self.whole_weight().contiguous()), self.bias
        return plain


def inject(model: Mixer, size: int) -> None:
    """Let every token-mixing MLP of `model` learn through size x size kernels (size odd), in place. The function stays
    the same."""
    of_grid = moves(model.cfg.part_grid, size).to(model.stem.weight)  # one for all layers
    for block in model.blocks:
        assert isinstance(block, MixerBlock)
        mlp = block.token_mixing
        mlp.fc1 = LocalLinear(mlp.fc1, of_grid, columns=False)
        mlp.fc2 = LocalLinear(mlp.fc2, of_grid, columns=True)


def folded(model: Mixer) -> Mixer:
    """A new plain Mixer that is the same function as `model`, its kernels in W1 and W2; `model` itself if it has
    none."""
    if not any(isinstance(layer, LocalLinear) for layer in model.modules()):
        return model
    model = copy.deepcopy(model)
    for block in model.blocks:
        assert isinstance(block, MixerBlock)
        mlp = block.token_mixing
        mlp.fc1, mlp.fc2 = (layer.folded() if isinstance(layer, LocalLinear) else layer for layer in (mlp.fc1, mlp.fc2))
    return model
