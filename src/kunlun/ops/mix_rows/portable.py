"""Row mixing as batched products whose one factor is the same memory for every sample."""

from __future__ import annotations

import torch
from torch import Tensor

_PRODUCTS = 4 * 1024 * 1024  # numbers of per-sample gradients of z that are kept at a time


def forward(x: Tensor, z: Tensor) -> Tensor:
    """z^T x: x [n, S, D], z [S, T] -> [n, T, D]."""
    return torch.bmm(z.T.contiguous().expand(x.shape[0], -1, -1), x)


def backward(grad: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(dx [n, S, D], dz [S, T]) from grad [n, T, D]."""
    dx = torch.bmm(z.contiguous().expand(x.shape[0], -1, -1), grad)
    step = max(1, _PRODUCTS // max(z.numel(), 1))
    total = torch.float64 if z.dtype == torch.float64 else torch.float32
    dz = z.new_zeros(z.shape, dtype=total)
    for part, part_grad in zip(x.split(step), grad.split(step), strict=True):
        dz += torch.bmm(part, part_grad.transpose(1, 2)).sum(0, dtype=total)
    return dx, dz.to(z.dtype)
