"""The norms in float64, literally; tests only."""

from __future__ import annotations

from torch import Tensor


def layer_norm_reference(x: Tensor) -> Tensor:
    """[..., D] -> float64 [..., D]."""
    x = x.double()
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def rms_norm_reference(x: Tensor) -> Tensor:
    """[..., D] -> float64 [..., D]."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def add_rms_norm_reference(s: Tensor, u: Tensor, y: Tensor) -> Tensor:
    """[..., D] -> float64 [..., D]."""
    return s.double() + rms_norm_reference(u.double() + y.double())
