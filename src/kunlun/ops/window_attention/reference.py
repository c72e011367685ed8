"""Full attention with an explicit band, one sample and head at a time, in float64; tests only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    window: int,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax over j with |i - j| <= window of scale * q_i . k_j, times v_j.

    q [L, H, D], k and v [L, Hkv, D] -> float64 [L, H, D]. Differentiable.
    """
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    share = q.shape[1] // k.shape[1]
    samples = []
    for b in range(len(offsets) - 1):
        rows = slice(int(offsets[b]), int(offsets[b + 1]))
        position = torch.arange(rows.stop - rows.start)
        distance = position[None, :] - position[:, None]
        outside = (distance.abs() > window) | (causal & (distance > 0))
        heads = []
        for h in range(q.shape[1]):
            scores = scale * q[rows, h].double() @ k[rows, h // share].double().T
            weights = scores.masked_fill(outside, -math.inf).softmax(dim=1)
            heads.append(weights @ v[rows, h // share].double())
        samples.append(torch.stack(heads, dim=1))
    return torch.cat(samples) if samples else q.double()
