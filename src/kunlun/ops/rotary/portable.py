"""Rotation of interleaved pairs as complex multiplication: one pass instead of eight."""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.ops.tiles import room, whole


def forward(x: Tensor, angle: Tensor) -> Tensor:
    """[L, H, D] in x's dtype; computed in float32, or float64 where x or angle is."""
    turned = _pairs(x, angle) * _turn(x, angle)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def by_angle(dx: Tensor, x: Tensor, angle: Tensor) -> Tensor:
    """[L, D/2], the gradient of an angle: Im(dx conj(x)), summed over the heads."""
    dx_pairs, x_pairs = (torch.view_as_real(_pairs(t, angle)) for t in (dx, x))
    across = dx_pairs[..., 1] * x_pairs[..., 0] - dx_pairs[..., 0] * x_pairs[..., 1]
    return across.sum(1).to(angle.dtype)


def _real(x: Tensor, angle: Tensor) -> torch.dtype:
    double = torch.float64 in (x.dtype, angle.dtype)
    return torch.float64 if double else torch.float32


def _pairs(x: Tensor, angle: Tensor) -> Tensor:
    """[L, H, D] -> complex [L, H, D/2]."""
    pairs = x.to(_real(x, angle)).contiguous().view(*x.shape[:2], x.shape[2] // 2, 2)
    return torch.view_as_complex(pairs)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """exp(j angle), complex [L, 1, D/2].

    A row's bits must not depend on being the last one, which torch's vectorized loops treat
    differently: hence whole vectors of angles for sine and cosine, and a spare column that keeps
    the product from looping across rows.
    """
    n, half = angle.shape
    angles = room(angle.to(_real(x, angle)), n, half + 1)
    angles[:, :half] = angle
    turn = torch.complex(whole(angles).cos(), whole(angles).sin())
    return turn[: angles.numel()].view(n, 1, half + 1)[..., :half]
