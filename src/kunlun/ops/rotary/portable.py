"""Rotation of interleaved pairs with torch alone."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, angle: Tensor) -> Tensor:
    """[L, H, D]; sine and cosine are taken in the dtype of `angle`."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]  # [L, 1, D/2]
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return pairs.flatten(-2).to(x.dtype)
