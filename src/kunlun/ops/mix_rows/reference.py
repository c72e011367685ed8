"""One sample at a time, in float64; tests only."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_rows_reference(x: Tensor, z: Tensor) -> Tensor:
    """z^T x: x [n, S, D], z [S, T] -> float64 [n, T, D]."""
    out = torch.zeros(x.shape[0], z.shape[1], x.shape[2], dtype=torch.float64)
    return torch.stack([z.double().T @ sample.double() for sample in x]) if len(x) else out
