"""Explicit products of features: cross layers (DCNv2) and pairwise dots (DLRM)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CrossLayer(nn.Module):
    """x' = x_0 * (W x + b) + x: one order of products more a layer (DCNv2, 2008.13535, eq. 1).

    rank: W = U V^T of that rank, its low-rank form; None: a full matrix. FLOPs: 2 B F^2, with a
    rank 4 B F r.
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        inner = width if rank is None else rank
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(inner, width)
        for linear in (self.down, self.up):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.up.bias)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Both [B, F] -> [B, F]."""
        inner = x if self.down is None else self.down(x)
        y: Tensor = x0 * self.up(inner) + x
        return y

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        down = 0 if self.down is None else self.down.weight.numel()
        return 2 * rows * (down + self.up.weight.numel())


class PairwiseDots(nn.Module):
    """<x_i, x_j> for i < j, divided by sqrt(D) so that unit tokens give unit dots (DLRM).

    [B, N, D] -> [B, N (N - 1) / 2]. FLOPs: 2 B N^2 D, the products of all pairs.
    """

    pairs: Tensor  # int64 [N (N - 1) / 2], places above the diagonal of the flattened [N, N]

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        i, j = torch.triu_indices(tokens, tokens, 1)
        self.tokens, self.dim, self.count = tokens, dim, tokens * (tokens - 1) // 2
        self.register_buffer("pairs", i * tokens + j, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N (N - 1) / 2]."""
        dots = torch.bmm(x, x.mT) / math.sqrt(self.dim)
        return dots.flatten(1).index_select(1, self.pairs)

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        return 2 * rows * self.tokens * self.tokens * self.dim
