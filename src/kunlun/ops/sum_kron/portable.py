"""A sum of Kronecker products as two matrix products, in the cheaper of the two orders.

Either way the sum over the k terms happens inside the second product, and the intermediate is
kept for the backward. Rows first: mixed [n, T * k, D]. Width first: wide [n, S * k, D2].
"""

from __future__ import annotations

from torch import Tensor

from kunlun.ops.flops import sum_kron_rows_first, sum_kron_width_first
from kunlun.ops.mix_rows import portable as rows


def rows_first(x: Tensor, z: Tensor, w: Tensor) -> bool:
    """Whether that order costs no more."""
    shape = (*z.shape[1:], z.shape[0], *w.shape[1:])
    return sum_kron_rows_first(*shape) <= sum_kron_width_first(*shape)


def forward(x: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, S, D], z [k, S, T], w [k, D, D2] -> (result [n, T, D2], intermediate)."""
    n, s, d = x.shape
    k, _, t = z.shape
    d2 = w.shape[2]
    if rows_first(x, z, w):
        mixed = rows.forward(x, z.permute(1, 2, 0).reshape(s, t * k))
        return (mixed.view(n * t, k * d) @ w.reshape(k * d, d2)).view(n, t, d2), mixed
    wide = (x.reshape(n * s, d) @ w.transpose(0, 1).reshape(d, k * d2)).view(n, s * k, d2)
    return rows.forward(wide, z.transpose(0, 1).reshape(s * k, t)), wide


def backward(
    grad: Tensor, x: Tensor, z: Tensor, w: Tensor, between: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dz, dw) from grad [n, T, D2] and the intermediate."""
    n, s, d = x.shape
    k, _, t = z.shape
    d2 = w.shape[2]
    if rows_first(x, z, w):
        flat = grad.reshape(n * t, d2)
        dw = between.view(n * t, k * d).T @ flat
        d_mixed = (flat @ w.reshape(k * d, d2).T).view(n, t * k, d)
        dx, dz = rows.backward(d_mixed, x, z.permute(1, 2, 0).reshape(s, t * k))
        return dx, dz.view(s, t, k).permute(2, 0, 1).contiguous(), dw.view(k, d, d2)
    d_wide, dz = rows.backward(grad, between, z.transpose(0, 1).reshape(s * k, t))
    flat = d_wide.view(n * s, k * d2)
    dw = x.reshape(n * s, d).T @ flat
    dx = flat @ w.transpose(0, 1).reshape(d, k * d2).T
    return (
        dx.view(n, s, d),
        dz.view(s, k, t).transpose(0, 1).contiguous(),
        dw.view(d, k, d2).transpose(0, 1).contiguous(),
    )
