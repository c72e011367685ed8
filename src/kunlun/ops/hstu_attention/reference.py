"""The weights written out, one sample and head at a time, in float64; tests only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def hstu_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    out_scale: float = 1.0,
) -> Tensor:
    """out_scale * sum over j <= i of silu(scale * q_i . k_j + rab_ij) v_j.

    q, k, v [L, H, D], time [L], tables [P], [Q] -> float64 [L, H, D]. Differentiable.
    """
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    starts = torch.tensor([s for e in range(40) for s in (2.0**e, 1.5 * 2.0**e)], dtype=time.dtype)
    samples = []
    for b in range(len(offsets) - 1):
        rows = slice(int(offsets[b]), int(offsets[b + 1]))
        position = torch.arange(rows.stop - rows.start)
        behind = position[:, None] - position[None, :]
        gap = (time[rows, None] - time[None, rows]).abs()
        bucket = torch.bucketize(gap, starts, right=True).clamp(max=len(time_bias) - 1)
        rab = position_bias.double()[behind.clamp(0, len(position_bias) - 1)]
        rab = rab + time_bias.double()[bucket]
        banned = (behind < 0) if window is None else (behind < 0) | (behind > window)
        heads = []
        for h in range(q.shape[1]):
            scores = scale * q[rows, h].double() @ k[rows, h].double().T + rab
            heads.append(F.silu(scores).masked_fill(banned, 0) @ v[rows, h].double() * out_scale)
        samples.append(torch.stack(heads, dim=1))
    return torch.cat(samples) if samples else q.double()
