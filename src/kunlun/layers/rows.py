"""Softmax attention from packed queries to a few rows of the same sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.ops import gdpa


def attend_to_rows(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, every query over the `rows` >= 1 rows k, v of its sample.

    q [L, H, D] over n sequences, k and v [n * rows, H, D], offsets [n + 1] -> [L, H, D].

    An ablation without a kernel of its own: gdpa without activation gives the scores with the
    identity as values, and the result with the identity as keys. Jagged and on every backend, but
    8 L H D rows FLOPs, twice what the formula needs, and L H rows weights in memory.
    """
    n, (_, heads, width) = offsets.shape[0] - 1, q.shape
    identity = torch.eye(width, dtype=q.dtype, device=q.device)[:, None].expand(n, -1, heads, -1)

    def products(x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x keys^T values; keys and values [n, r, H, D]."""
        kv_offsets = torch.arange(n + 1, device=offsets.device) * keys.shape[1]
        keys, values = keys.reshape(-1, heads, width), values.reshape(-1, heads, width)
        return gdpa(x, keys, values, offsets, kv_offsets, activation="raw")

    # at most D rows a time, since a result of gdpa is as wide as its queries
    ks, vs = (x.view(n, rows, heads, width).split(width, dim=1) for x in (k, v))
    units = [identity[:, : part.shape[1]] for part in ks]
    scores = [
        products(q, part, unit)[..., : part.shape[1]] for part, unit in zip(ks, units, strict=True)
    ]
    weights = torch.softmax(torch.cat(scores, dim=-1) * width**-0.5, dim=-1).to(q.dtype)
    out = torch.zeros_like(q)
    for share, unit, part in zip(weights.split(width, dim=-1), units, vs, strict=True):
        out = out + products(F.pad(share, (0, width - share.shape[-1])), unit, part)
    return out
