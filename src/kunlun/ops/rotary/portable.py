"""Rotation of interleaved pairs with real arithmetic alone.

Complex multiplication would be one pass, but its last bits depend on where a row stands in
torch's vector loops; these products and sums do not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, angle: Tensor) -> Tensor:
    """[L, H, D] in x's dtype; computed in float32, or float64 where x or angle is."""
    cos, sin = _turn(x, angle)
    y, crossed = _real(x, angle), _crossed(_real(x, angle))
    return (y * cos).add_(crossed.mul_(sin)).to(x.dtype)


def backward(grad: Tensor, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """(dx [L, H, D], dangle [L, D/2]) from grad [L, H, D].

    dx turns grad back; an angle's gradient is dx[2i+1] x[2i] - dx[2i] x[2i+1], over the heads.
    """
    cos, sin = _turn(x, angle)
    g = _real(grad, angle)
    back = (g * cos).sub_(_crossed(g).mul_(sin))
    by_channel = _crossed(_real(x, angle)).mul_(back).sum(1)  # -x[2i+1] dx[2i], x[2i] dx[2i+1]
    by_angle = by_channel.view(len(by_channel), angle.shape[1], 2).sum(2)
    return back.to(x.dtype), by_angle.to(angle.dtype)


def _real(x: Tensor, angle: Tensor) -> Tensor:
    return x.to(torch.float64 if torch.float64 in (x.dtype, angle.dtype) else torch.float32)


def _crossed(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) in every pair of the last axis; a new tensor."""
    pairs = x.unflatten(2, (x.shape[2] // 2, 2))
    crossed = torch.empty_like(pairs, memory_format=torch.contiguous_format)
    torch.neg(pairs[..., 1], out=crossed[..., 0])
    crossed[..., 1] = pairs[..., 0]
    return crossed.flatten(2)


def _turn(x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every channel, [L, 1, D]."""
    angle = _real(angle, x)[:, None]
    return angle.cos().repeat_interleave(2, dim=2), angle.sin().repeat_interleave(2, dim=2)
