"""A sequence of any length -> a few summary tokens (paper 4.3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.layers.norm import layer_norm
from kunlun.ops import rotary_split, seed_attention, sum_kron
from kunlun.ops.flops import sum_kron_flops
from kunlun.ops.jagged import Jagged


@dataclass(frozen=True, kw_only=True)
class PoolingConfig(Config):
    """Hierarchical seed pooling; kind "pma" is its ablation: `tokens` seeds, no compression."""

    kind: Literal["hsp", "pma"] = "hsp"
    seeds: int = 32  # overcomplete on purpose: more seeds than tokens
    tokens: int = 8
    compress: Literal["sum_kron", "linear"] = "sum_kron"  # "linear": one separable term
    rank: int = 8  # k, terms of the Kronecker sum
    reduce: Literal["mean", "sum"] = "mean"  # "sum": n / sqrt(max_len) times softmax's average

    def __post_init__(self) -> None:
        at_least_one("pooling.", seeds=self.seeds, tokens=self.tokens, rank=self.rank)
        if self.kind == "hsp" and self.seeds <= self.tokens:
            raise ConfigError(
                f"seeds ({self.seeds}) must exceed tokens ({self.tokens}); HSP compresses"
            )


class SumKronLinear(nn.Module):
    """Y = sum_i Z_i^T X W_i: joint mixing of tokens and channels with k (S T + D D2) weights.

    [n, S, D] -> [n, T, D2]. FLOPs: the cheaper of the two contraction orders (ops.sum_kron).
    """

    def __init__(self, seeds: int, tokens: int, dim_in: int, dim_out: int, rank: int) -> None:
        super().__init__()
        # the variance of the sum over rank, seeds and channels stays 1 for unit-variance input
        self.z = nn.Parameter(torch.randn(rank, seeds, tokens) * (rank * seeds) ** -0.5)
        self.w = nn.Parameter(torch.randn(rank, dim_in, dim_out) * dim_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, S, D] -> [n, T, D2]."""
        return sum_kron(x, self.z.to(x.dtype), self.w.to(x.dtype))

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        rank, seeds, tokens = self.z.shape
        _, dim_in, dim_out = self.w.shape
        return sum_kron_flops(rows, seeds, tokens, rank, dim_in, dim_out)


class SeedPooling(nn.Module):
    """H = SumKronLinear(MHA(Norm(E), Norm(S), Norm(S))) + default tokens.

    Seeds E [S, d_e] are shared by the batch and attend by softmax over each sequence, keys
    rotated by time. No output projection: SumKronLinear's channel maps contain it, and map d_e to
    the interaction's width d as well. The default tokens are what an empty history gives.
    A softmax average cannot tell one click from twenty. With `reduce` "sum" it is multiplied by
    n / sqrt(max_len), n the length of the sequence: counts reach the interaction, and the sum of
    max_len unrelated events is still of unit size.
    FLOPs: 4 L d_e^2 + 2 S d_e^2 projections, 4 S L d_e attention, then SumKronLinear.
    """

    def __init__(self, dim: int, heads: int, dim_out: int, config: PoolingConfig) -> None:
        super().__init__()
        self.heads, self.sums = heads, config.reduce == "sum"
        hsp = config.kind == "hsp"
        seeds = config.seeds if hsp else config.tokens
        self.seeds = nn.Parameter(torch.randn(seeds, dim))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.default = nn.Parameter(torch.zeros(config.tokens, dim_out))
        rank = config.rank if config.compress == "sum_kron" else 1
        self.compress: SumKronLinear | nn.Linear = (
            SumKronLinear(seeds, config.tokens, dim, dim_out, rank)
            if hsp
            else nn.Linear(dim, dim_out, bias=False)
        )

    def forward(self, s: Jagged, angle: Tensor | None) -> Tensor:
        """s [L, d_e] over n sequences, angle [L, d_h / 2] or None -> [n, tokens, d]."""
        length, dim = s.values.shape
        width = dim // self.heads
        kv = self.key_value(layer_norm(s.values)).view(length, 2, self.heads, width)
        k, v = kv.unbind(1) if angle is None else rotary_split(kv, angle, turned=1)
        # A small tensor of a fixed shape: torch's own norm costs less than a call of our operator.
        seeds = F.layer_norm(self.seeds, self.seeds.shape[1:])
        q = self.query(seeds).view(-1, self.heads, width).to(k.dtype)
        pooled = seed_attention(q, k, v, s.offsets)
        if self.sums:
            counts = s.lengths.to(pooled.dtype) / math.sqrt(s.max_len)
            pooled = pooled * counts.view(-1, 1, 1, 1)
        y: Tensor = self.compress(pooled.flatten(2))
        return y + self.default

    def flops(self, rows: int, events: int) -> int:
        """Forward FLOPs for `rows` samples with `events` events in all."""
        seeds, dim = self.seeds.shape
        attention = 4 * events * dim * dim + 2 * seeds * dim * dim + 4 * seeds * events * dim
        if isinstance(self.compress, SumKronLinear):
            return attention + self.compress.flops(rows)
        return attention + 2 * rows * seeds * self.compress.weight.numel()
