"""The pieces that every independent implementation needs, in plain float64 torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    """Linear, tanh-GELU, Linear."""
    hidden = x @ w[f"{name}.up.weight"].T + w[f"{name}.up.bias"]
    hidden = F.gelu(hidden, approximate="tanh")
    return hidden @ w[f"{name}.down.weight"].T + w[f"{name}.down.bias"]


def norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, no affine."""
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def mlp_size(dim_in: int, hidden: int, dim_out: int) -> int:
    """Parameters of `mlp`."""
    return (dim_in + 1) * hidden + (hidden + 1) * dim_out


def rows_of(events: Any, i: int) -> list[Tensor]:
    """The events [T, d] of sample i, one entry a type."""
    return [s.values[s.offsets[i] : s.offsets[i + 1]] for s, _ in events.values()]


def with_means(tokens: Tensor, events: Any, i: int) -> Tensor:
    """[N + types, D] of sample i: its tokens, the mean of each history, unit size as a whole."""
    means = [e.mean(0) if len(e) else e.new_zeros(e.shape[1]) for e in rows_of(events, i)]
    x = torch.stack([*tokens[i], *means])
    return norm(x.flatten()).view_as(x)
