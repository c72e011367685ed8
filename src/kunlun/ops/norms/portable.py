"""Row norms with torch alone: its own functions, and the backward of the registered operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.ops.tiles import compute_dtype

EPS = 1e-5


def normalize(x: Tensor, centered: bool, dtype: torch.dtype) -> Tensor:
    """[..., D] in `dtype`, differentiable; rounded once."""
    norm = F.layer_norm if centered else F.rms_norm
    wide = torch.promote_types(x.dtype, dtype)
    return norm(x.to(wide), x.shape[-1:], eps=EPS).to(dtype)


def add_rms_norm(s: Tensor, u: Tensor, y: Tensor) -> Tensor:
    """[..., D] in s's dtype, differentiable."""
    total = u.to(compute_dtype(u.dtype)) + y
    return (s + normalize(total, centered=False, dtype=total.dtype)).to(s.dtype)


def forward(x: Tensor, centered: bool) -> tuple[Tensor, Tensor]:
    """x [rows, D] -> (result and rstd [rows]), both in the dtype we compute in."""
    x = x.to(compute_dtype(x.dtype))
    if centered:
        x = x - x.mean(1, keepdim=True)
    rstd = (x.square().mean(1, keepdim=True) + EPS).rsqrt()
    return x * rstd, rstd[:, 0]


def backward(grad: Tensor, out: Tensor, rstd: Tensor, centered: bool) -> Tensor:
    """dx [rows, D] in rstd's dtype, from the result: dx = rstd (g - mean g - out mean(g out))."""
    grad, out = grad.to(rstd.dtype), out.to(rstd.dtype)
    along = (grad * out).mean(1, keepdim=True)
    if centered:
        grad = grad - grad.mean(1, keepdim=True)
    return (grad - out * along) * rstd[:, None]
