"""External attention, and EAMLP blocks of it as a network for small images, on one page.

Paper: Guo et al., "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks",
arXiv:2105.02358, section 3. Official code: MenghaoGuo/EANet, model_torch.py and EAMLP/models/transformer_block.py.

Letters: B batch, N tokens, C channels, M slots of the memory, d channels of a head. What differs from equation (1) of
the Mixer: tokens meet only in two memories, learnt matrices that all images share, by an attention that is normalised
over the tokens and then over the slots. It needs no fixed number of tokens.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from mlpmixer.models.configs import EAMLPConfig
from mlpmixer.models.layers import DropPath, Mlp, linear_head, linear_stem, truncated_normal
from mlpmixer.models.patch_networks import TokenNetwork


def double_normalise(logits: Tensor, tokens: int, slots: int) -> Tensor:
    """Equation (8): softmax over the axis of the tokens, then each token divided by its sum over that of the slots. The
    1e-9 is the official code's."""
    a = logits.softmax(dim=tokens)
    return a * (1e-9 + a.sum(dim=slots, keepdim=True)).reciprocal()  # the gradient of a quotient takes twice the passes


class ExternalAttention(nn.Module):
    """External attention over maps (B, C, H, W), of any height and width: the block of the paper's segmentation network
    (section 3.2, official model_torch.py).

    dim: C, channels of the maps, before and after.
    num_slots: M, rows of the memories M_k and M_v, two learnt matrices that all images share; 64 in the official code.

    M_k and M_v start equal and train apart; in the official code they share their memory until the module is moved.
    """

    def __init__(self, dim: int, num_slots: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.linear_0 = nn.Conv1d(dim, num_slots, 1, bias=False)  # M_k
        self.linear_1 = nn.Conv1d(num_slots, dim, 1, bias=False)  # M_v
        self.conv2 = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        for conv in (self.conv1, self.linear_0, self.conv2[0]):
            weight = cast(Tensor, conv.weight)
            nn.init.normal_(weight, std=(2 / len(weight)) ** 0.5)
        nn.init.zeros_(cast(Tensor, self.conv1.bias))
        with torch.no_grad():
            self.linear_1.weight.copy_(self.linear_0.weight.transpose(0, 1))

    def attention(self, images: Tensor) -> Tensor:
        """The attention maps: (B, C, H, W) -> (B, M, N), the share of every slot that each of N = H W places reads, by
        equation (8)."""
        return double_normalise(self.linear_0(self.conv1(images).flatten(2)), tokens=2, slots=1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> (B, C, H, W): relu(BN(conv(M_v attention)) + images), features of a network.

        Errors: ValueError for maps of another number of channels than dim.
        """
        if images.ndim != 4 or images.shape[1] != self.conv1.in_channels:
            raise ValueError(f"expected maps of shape (B, {self.conv1.in_channels}, H, W), got {tuple(images.shape)}")
        read = self.linear_1(self.attention(images)).unflatten(2, images.shape[2:])
        return relu(self.conv2(read) + images)


class MultiHeadExternalAttention(nn.Module):
    """Section 3.3, as EAMLP has it: (B, N, C) -> (B, N, C). All heads share one pair of memories.

    The biases of `trans_dims` and `linear_0` have no effect: what they add to a slot for all tokens, the softmax over
    the tokens takes away.
    """

    def __init__(self, dim: int, num_heads: int, num_slots: int = 64) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim {dim}, got {num_heads}")
        d = dim // num_heads
        self.heads = 4 * num_heads
        self.trans_dims = nn.Linear(dim, 4 * dim)
        self.linear_0 = nn.Linear(d, num_slots)  # M_k
        self.linear_1 = nn.Linear(num_slots, d)  # M_v
        self.proj = nn.Linear(4 * dim, dim)

    def attention(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, M)."""
        heads = self.trans_dims(x).unflatten(-1, (self.heads, -1))  # (B, N, heads, d)
        return double_normalise(self.linear_0(heads), tokens=1, slots=3).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        read = self.linear_1(self.attention(x).transpose(1, 2)).flatten(2)  # (B, N, 4 C), the heads never copied
        return cast(Tensor, self.proj(read))


class EAMLPBlock(nn.Module):
    """One block: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, num_slots: int = 64, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MultiHeadExternalAttention(dim, num_heads, num_slots)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.drop_path(self.attn(self.norm1(x)))
        return cast(Tensor, y + self.drop_path(self.mlp(self.norm2(y))))


class EAMLP(TokenNetwork):
    """Images to logits: (B, in_channels, H, W) -> (B, K), or pre-logits (B, C) when num_classes is 0.

    The blocks of EAMLP behind the stem of a Mixer, with mean pooling. The published networks have a stem of overlapping
    patches with external attention of its own, a class token and fixed positions, and are not made here.
    """

    cfg: EAMLPConfig

    def __init__(self, cfg: EAMLPConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c, last = cfg.hidden_dim, max(cfg.num_blocks - 1, 1)
        self.stem = linear_stem(cfg, c)
        self.blocks = nn.ModuleList(
            EAMLPBlock(c, cfg.num_heads, cfg.channels_mlp_dim, cfg.num_slots, cfg.drop_path * i / last)
            for i in range(cfg.num_blocks)
        )
        self.norm = nn.LayerNorm(c)
        self.head = linear_head(cfg)
        truncated_normal(*self.blocks.modules())
        self.start_head()

    def start_head(self) -> None:
        """As the other linear layers start."""
        truncated_normal(self.head)
