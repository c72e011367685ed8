"""The product in float64; tests only."""

from __future__ import annotations

from torch import Tensor


def mix_rows_reference(x: Tensor, z: Tensor) -> Tensor:
    """z^T x: x [n, S, D], z [S, T] -> float64 [n, T, D]."""
    return z.double().T @ x.double()
