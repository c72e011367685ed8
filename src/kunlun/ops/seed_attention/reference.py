"""Softmax attention of shared queries, one sample and head at a time, in float64; tests only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def seed_attention_reference(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, scale: float | None = None
) -> Tensor:
    """softmax_j(scale * seed_s . k_j) v_j; no rows give zeros.

    seeds [S, H, D], k and v [L, H, D] -> float64 [n, S, H, D]. Differentiable.
    """
    scale = 1 / math.sqrt(seeds.shape[2]) if scale is None else scale
    samples = [seeds.double()[:0].new_zeros(0, *seeds.shape)]
    for b in range(len(offsets) - 1):
        rows = slice(int(offsets[b]), int(offsets[b + 1]))
        heads = []
        for h in range(seeds.shape[1]):
            scores = scale * seeds[:, h].double() @ k[rows, h].double().T
            heads.append(scores.softmax(dim=1) @ v[rows, h].double())
        samples.append(torch.stack(heads, dim=1)[None])
    return torch.cat(samples)
