"""A sum of Kronecker products as two matrix products, in the cheaper of the two orders."""

from __future__ import annotations

from torch import Tensor

from kunlun.ops.flops import sum_kron_rows_first, sum_kron_width_first


def forward(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """[n, T, D2]. Either way the sum over i happens inside the second product."""
    n, s, d = x.shape
    k, _, t = z.shape
    d2 = w.shape[2]
    if sum_kron_rows_first(s, t, k, d, d2) <= sum_kron_width_first(s, t, k, d, d2):
        mixed = z.permute(2, 0, 1).reshape(t * k, s) @ x  # [n, T * k, D]
        return (mixed.reshape(n * t, k * d) @ w.reshape(k * d, d2)).view(n, t, d2)
    wide = x.reshape(n * s, d) @ w.transpose(0, 1).reshape(d, k * d2)  # [n * S, k * D2]
    return z.permute(2, 1, 0).reshape(t, s * k) @ wide.view(n, s * k, d2)
