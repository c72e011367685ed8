"""The sum, term by term, in float64; tests only."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_kron_reference(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """sum_i z_i^T x w_i: x [n, S, D], z [k, S, T], w [k, D, D2] -> float64 [n, T, D2]."""
    out = torch.zeros(x.shape[0], z.shape[2], w.shape[2], dtype=torch.float64)
    for i in range(z.shape[0]):
        out = out + z[i].double().T @ x.double() @ w[i].double()
    return out
