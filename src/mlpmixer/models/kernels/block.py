"""A Mixer block on a CPU as one step of autograd.

`WholeBlock` is block.c's, products included: float32 on AVX2 without AVX-512. In `Block` the matrix products are
oneDNN's, and what is between them block.c's: bfloat16, and float32 elsewhere.

Letters as in mixer.py; D stands for DS or DC, M for rows of a matrix product: B*C for token mixing, B*S for channel
mixing.
"""

import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlpmixer.models.native import call, constant, leaves_avx512


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) @ b (K, N) + bias (N). In float32 by oneDNN: torch's default is MKL, which leaves AVX-512 unused on an
    AMD CPU, and which alone multiplies what is empty."""
    if a.dtype == torch.float32 and a.numel():
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], ""))
    return a @ b if bias is None else torch.addmm(bias, a, b)


def gelu(u: Tensor, erf: bool) -> Tensor:
    h = torch.empty_like(u)
    call("gelu", u.dtype, u, h, u.numel(), erf)
    return h


def gelu_backward(u: Tensor, dh: Tensor, erf: bool) -> tuple[Tensor, Tensor, Tensor]:
    """u, dh (M, D) -> h = gelu(u), du (in the memory of dh), and the sum of du over the rows (D), float32."""
    h, db = torch.empty_like(u), u.new_empty(u.shape[1], dtype=torch.float32)
    call("gelu_backward", u.dtype, u, dh, h, db, *u.shape, erf)
    return h, dh, db


@functools.cache
def can(*instructions: str) -> bool:
    there = torch.cpu.get_capabilities()
    left = ("avx512", "amx") if leaves_avx512() else ()
    return all(there.get(name, False) and not name.startswith(left) for name in instructions)


def fuses() -> bool:
    """Whether oneDNN's products are to take the GELU and the residual sum along: on AVX-512, where that is free."""
    return can("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl")  # what oneDNN wants for bfloat16, too


def computes_whole(dtype: torch.dtype) -> bool:
    """Whether block.c computes the products, too: in float32 on AVX2 without AVX-512."""
    return dtype == torch.float32 and can("avx2") and not fuses()


def pack(w: Tensor) -> Tensor:
    """w (N, K) -> (N / lanes rounded up, K, lanes): the order in which block.c reads w^T, which rows are multiplied
    by."""
    (n, k), lanes = w.shape, constant("lanes")
    out = w.new_empty(-(-n // lanes), k, lanes)
    call("pack", torch.float32, w.data_ptr(), out, n, k, *w.stride())  # whether contiguous or not
    return out


def hidden(x: Tensor, w: Tensor, b: Tensor, erf: bool) -> Tensor:
    """x (M, K) -> gelu(x w^T + b) (M, D), of w (D, K)."""
    if fuses():
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, w, b, "gelu", [], "none" if erf else "tanh"))
    u = F.linear(x, w, b)
    call("gelu", u.dtype, u, u, u.numel(), erf)
    return u


def infer(
    x: Tensor, erf: bool, gamma1: Tensor, beta1: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    gamma2: Tensor, beta2: Tensor, w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor,
) -> Tensor:  # fmt: skip
    """`Block` without gradients, which keeps nothing. Matrices w and biases b are of x's dtype, matrices packed where
    block.c `computes_whole`."""
    (b, s, c), dtype = x.shape, x.dtype
    u, (mean, rstd) = torch.empty_like(x), x.new_empty(2, b * s, dtype=torch.float32)
    if computes_whole(dtype):
        weights = (gamma1, beta1, w1, b1, w2, b2, gamma2, beta2, w3, b3, w4, b4)
        kept = (mean, rstd, mean, rstd, None, None, u)
        sizes = (b, s, c, len(b1), len(b3), torch.get_num_threads(), erf)
        call("forward", dtype, x, *weights, None, None, *kept, u, *sizes)
        return u
    columns = x.new_empty(b * c, s)
    call("norm_to_columns", dtype, x, gamma1, beta1, columns, mean, rstd, b, s, c)
    h = hidden(columns, w1, b1, erf)  # (B*C, DS)
    mixed = (
        torch.ops.mkldnn._linear_pointwise(h, w2, b2, "none", [], "") if fuses() else F.linear(h, w2, b2)
    )  # (B*C, S)
    y = columns.view(b * s, c)  # in memory that is no longer needed
    call("add_columns_and_norm", dtype, x, mixed, None, gamma2, beta2, u, y, mean, rstd, b, s, c)
    h, rows = hidden(y, w3, b3, erf), u.view(b * s, c)  # (B*S, DC)
    out = (
        torch.ops.mkldnn._linear_pointwise.binary(h, rows, w4, b4, "add") if fuses() else rows.add_(F.linear(h, w4, b4))
    )
    return cast(Tensor, out.view(b, s, c))


class Block(torch.autograd.Function):
    """(B, S, C) -> (B, S, C), equation (1).

    `erf` says which GELU. `keep` (2, B) scales the two branches of each sample (stochastic depth); None is 1.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, erf: bool, keep: Tensor | None, gamma1: Tensor, beta1: Tensor, w1: Tensor, b1: Tensor,
        w2: Tensor, b2: Tensor,
        gamma2: Tensor, beta2: Tensor, w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor,
    ) -> Tensor:  # fmt: skip
        (b, s, c), dtype = x.shape, x.dtype
        matrices = w1, w2, w3, w4 = [w.to(dtype) for w in (w1, w2, w3, w4)]
        biases = [v.to(dtype) for v in (b1, b2, b3, b4)]
        keep1, keep2 = keep if keep is not None else (None, None)

        columns, u, y, out = x.new_empty(b * c, s), torch.empty_like(x), x.new_empty(b * s, c), x
        mean1, rstd1, mean2, rstd2 = x.new_empty(4, b * s, dtype=torch.float32)
        call("norm_to_columns", dtype, x, gamma1, beta1, columns, mean1, rstd1, b, s, c)
        hidden1 = product(columns, w1.T, biases[0])  # (B*C, DS)
        mixed = product(gelu(hidden1, erf), w2.T, biases[1])  # (B*C, S)
        call("add_columns_and_norm", dtype, x, mixed, keep1, gamma2, beta2, u, y, mean2, rstd2, b, s, c)
        hidden2 = product(y, w3.T, biases[2])  # (B*S, DC)
        branch = product(gelu(hidden2, erf), w4.T, biases[3]).view(b, s, c)
        out = branch.add_(u) if keep2 is None else torch.addcmul(u, branch, keep2.to(dtype)[:, None, None])
        ctx.erf = erf
        ctx.save_for_backward(
            x, keep, gamma1, gamma2, *matrices, columns, hidden1, u, y, hidden2, mean1, rstd1, mean2, rstd2
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, keep, gamma1, gamma2, w1, w2, w3, w4, columns, hidden1, u, y, hidden2, mean1, rstd1, mean2, rstd2 = (
            ctx.saved_tensors
        )
        (b, s, c), dtype = x.shape, x.dtype
        keep1, keep2 = keep if keep is not None else (None, None)
        g = g.contiguous()

        branch = (g if keep2 is None else g * keep2.to(dtype)[:, None, None]).view(b * s, c)
        h, du, db3 = gelu_backward(hidden2, product(branch, w4), ctx.erf)
        dw4, dw3 = (
            product(branch.T, h),
            product(y.T, du).T,
        )  # rather than du.T y: the narrow matrix first is up to 4 times as fast
        del h
        dgamma2, dbeta2, db4 = x.new_empty(3, c, dtype=torch.float32)
        g1, sizes = torch.empty_like(x), (b, s, c, torch.get_num_threads())
        past = (u, mean2, rstd2, gamma2, g, keep2, g1, dgamma2, dbeta2, db4)
        call("norm_backward", dtype, product(du, w3), False, *past, *sizes)

        mixed, db2 = torch.empty_like(columns), x.new_empty(s, dtype=torch.float32)
        call("to_columns", dtype, g1, keep1, mixed, db2, b, s, c)
        h, du, db1 = gelu_backward(hidden1, product(mixed, w2), ctx.erf)
        dw2, dw1 = product(mixed.T, h), product(columns.T, du).T
        del h
        dgamma1, dbeta1, unused = x.new_empty(3, c, dtype=torch.float32)
        dx = torch.empty_like(x)
        past = (x, mean1, rstd1, gamma1, g1, None, dx, dgamma1, dbeta1, unused)
        call("norm_backward", dtype, product(du, w1), True, *past, *sizes)
        dw1, dw2, dw3, dw4 = (d.float().contiguous() for d in (dw1, dw2, dw3, dw4))
        return dx, None, None, dgamma1, dbeta1, dw1, db1, dw2, db2, dgamma2, dbeta2, dw3, db3, dw4, db4


class WholeBlock(torch.autograd.Function):
    """`Block` with products by block.c, in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, erf: bool, keep: Tensor | None, gamma1: Tensor, beta1: Tensor, w1: Tensor, b1: Tensor,
        w2: Tensor, b2: Tensor,
        gamma2: Tensor, beta2: Tensor, w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor,
    ) -> Tensor:  # fmt: skip
        b, s, c = x.shape
        sizes = (b, s, c, len(b1), len(b3), torch.get_num_threads(), erf)
        moments, u, out = x.new_empty(4, b * s), torch.empty_like(x), torch.empty_like(x)
        hidden1, hidden2 = panels(x, b * c, len(b1)), panels(x, b * s, len(b3))
        weights = (gamma1, beta1, pack(w1), b1, pack(w2), b2, gamma2, beta2, pack(w3), b3, pack(w4), b4)
        scales = keep if keep is not None else (None, None)
        call("forward", x.dtype, x, *weights, *scales, *moments, hidden1, hidden2, u, out, *sizes)
        ctx.sizes = sizes
        ctx.save_for_backward(x, keep, moments, hidden1, hidden2, u, gamma1, beta1, w1, w2, gamma2, beta2, w3, w4)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, keep, moments, hidden1, hidden2, u, gamma1, beta1, w1, w2, gamma2, beta2, w3, w4 = ctx.saved_tensors
        _, s, c, ds, dc, *_ = ctx.sizes
        weights = (gamma1, beta1, pack(w1.T), pack(w2.T), gamma2, beta2, pack(w3.T), pack(w4.T))
        scales = keep if keep is not None else (None, None)
        g1, dy, dx = (torch.empty_like(x) for _ in range(3))
        shapes = ((c,), (c,), (ds, s), (ds,), (s, ds), (s,), (c,), (c,), (dc, c), (dc,), (c, dc), (c,))
        grads = [x.new_empty(shape) for shape in shapes]  # in the order of the parameters of `forward`
        kept = (x, u, *moments, hidden1, hidden2)
        call("backward", x.dtype, g.contiguous(), *kept, *weights, *scales, g1, dy, dx, *grads, *ctx.sizes)
        return dx, None, None, *grads


def panels(x: Tensor, rows: int, features: int) -> Tensor:
    """Room for values of these rows as block.c lays them out."""
    lanes, tall = constant("lanes"), constant("tall")
    return x.new_empty(-(-rows // tall) * tall * -(-features // lanes) * lanes)
