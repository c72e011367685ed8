"""What the two softmax operators share. Scores lie as [N, K, R]: keys, then query rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kunlun.ops.tiles import Rows, room, whole

LOG2_E = math.log2(math.e)
"""Scores are scaled by it inside their product, so that weights are powers of 2: torch's exp is
many times slower where it underflows, exp2 is not."""

BANNED = -1e30
"""Added to scores that must not count. Finite: a fully banned row, which only padding has, then
holds numbers and not NaN."""


def exponentiate_(scores: Tensor, base: Tensor) -> Tensor:
    """scores becomes 2^(scores - base); scores [N, K, R] made by room, base [N, 1, R]."""
    scores.sub_(base)
    whole(scores).exp2_()
    return scores


def sum_over_keys(weights: Tensor) -> Tensor:
    """[N, K, R] -> [N, 1, R] made by room."""
    total = room(weights, weights.shape[0], 1, weights.shape[2])
    return torch.sum(weights, 1, keepdim=True, out=total)


def log2_sum_(top: Tensor, total: Tensor) -> Tensor:
    """top + log2(total), the log2-sum-exp2 of scores; total made by room is used up."""
    whole(total).log2_()
    return total.add_(top)


def padding_bias(tile: Rows, keys: Tensor) -> Tensor | None:
    """[N, K, 1]: BANNED for the padded key rows of a tile, 0 for the others; None without any."""
    if tile.padding is None:
        return None
    bias = keys.new_zeros(keys.shape[0] * keys.shape[1])
    return bias.index_fill_(0, tile.padding, BANNED).view(-1, tile.length, 1)
