"""The pieces that every independent implementation needs, in plain float64 torch."""

from __future__ import annotations

import math
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


def half_octaves(seconds: float) -> int:
    """0 below one second; then 1, 1.5, 2, 3, 4, 6, ... seconds begin the next."""
    if seconds < 1:
        return 0
    octave = math.floor(math.log2(seconds))
    return 1 + 2 * octave + (seconds >= 1.5 * 2**octave)


def with_sums(w: Weights, tokens: Tensor, events: Any, i: int, cap: int) -> Tensor:
    """[N + types, D] of sample i: its tokens, a sum of each history, unit size as a whole."""
    sums = []
    for kind, (s, age) in enumerate(events.values()):
        total = torch.zeros_like(tokens[i][0])
        for j in range(int(s.offsets[i]), int(s.offsets[i + 1])):
            bucket = min(half_octaves(float(age[j])), 63)
            total = total + w["history.weight"][kind, bucket] * s.values[j]
        sums.append(total / cap**0.5)
    x = torch.stack([*tokens[i], *sums])
    return norm(x.flatten()).view_as(x)


def interest(w: Weights, kind: str, candidate: Tensor, events: Any, i: int, cap: int) -> Tensor:
    """DIN's unit, MLP([h, t, h - t, h * t]), weighs every event of sample i; events know ages."""
    unit = f"interests.attention.{kind}"
    t = norm(w[f"{unit}.target.weight"] @ candidate)
    total = torch.zeros_like(t)
    s, age = events[kind]
    for j in range(int(s.offsets[i]), int(s.offsets[i + 1])):
        bucket = min(half_octaves(float(age[j])), 63)
        h = norm(s.values[j] + w["interests.age"][bucket])
        total = total + mlp(w, f"{unit}.unit", torch.cat([h, t, h - t, h * t])) * h
    return total / cap**0.5
