"""InterFormer's PFFN: one linear map per sample, generated from the context (arXiv 2411.09852)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kunlun.layers.norm import layer_norm, product_dtype
from kunlun.ops import gdpa
from kunlun.ops.jagged import Jagged


class GeneratedFFN(nn.Module):
    """S' = S + LN(S) W^T with W = X_sum W_p, another [d, d] for every sample; pre-norm.

    X_sum [d, n_sum], W_p [n_sum, d]. W is never written: (X_sum W_p) s = X_sum (W_p s) is GDPA
    without activation, its keys the rows of W_p and its values the summary tokens.
    FLOPs: 4 L n_sum d.
    """

    def __init__(self, dim: int, n_sum: int) -> None:
        super().__init__()
        self.w_p = nn.Parameter(torch.randn(n_sum, dim) / math.sqrt(n_sum * dim))

    def forward(self, s: Jagged, x_sum: Tensor) -> Jagged:
        """s [L, d] over n sequences, x_sum [n, n_sum, d] -> Jagged [L, d]."""
        n_sum, dim = self.w_p.shape
        u = layer_norm(s.values)
        dtype = product_dtype(u)
        keys = self.w_p.to(dtype).repeat(s.n, 1).unsqueeze(1)
        values = x_sum.to(dtype).reshape(-1, 1, dim)
        kv_offsets = torch.arange(s.offsets.shape[0], device=s.offsets.device) * n_sum
        y = gdpa(
            u.to(dtype).unsqueeze(1), keys, values, s.offsets, kv_offsets, activation="raw"
        ).squeeze(1)
        return s.with_values(s.values + y)

    def flops(self, rows: int, events: int) -> int:
        """Forward FLOPs for `events` events."""
        return 4 * events * self.w_p.numel()
