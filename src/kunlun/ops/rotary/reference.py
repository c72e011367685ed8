"""Rotation of pairs as complex multiplication, in float64; tests only."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_reference(x: Tensor, angle: Tensor) -> Tensor:
    """(x[2i] + j x[2i+1]) * exp(j angle[i]): x [L, H, D], angle [L, D/2] -> float64 [L, H, D]."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turn = torch.polar(torch.ones_like(angle, dtype=torch.float64), angle.double())
    return torch.view_as_real(pairs * turn[:, None]).flatten(-2)
