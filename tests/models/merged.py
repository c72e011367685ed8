"""One sequence a row from all event types, for implementations that know one, in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kunlun.models.events import Events
from tests.models.plain import Weights


def half_octaves(seconds: float) -> int:
    """0 below one second; then 1, 1.5, 2, 3, 4, 6, ... seconds begin the next."""
    if seconds < 1:
        return 0
    octave = math.floor(math.log2(seconds))
    return 1 + 2 * octave + (seconds >= 1.5 * 2**octave)


def merged_row(
    w: Weights, events: Events, i: int, *, ages: bool, history: int | None = None
) -> tuple[list[Tensor], list[float]]:
    """The events of sample i, oldest first, and their ages: x + type (+ age's embedding)."""
    found = []
    for kind, (s, age) in enumerate(events.values()):
        for j in range(int(s.offsets[i]), int(s.offsets[i + 1])):
            x = s.values[j] + w["history.kind"][kind]
            if ages:
                x = x + w["history.age"][min(half_octaves(float(age[j])), 63)]
            found.append((-float(age[j]), kind, j, x))
    found.sort(key=lambda entry: entry[:3])
    found = found[-history:] if history is not None else found
    return [entry[3] for entry in found], [-entry[0] for entry in found]


def unit_context(tokens: Tensor) -> Tensor:
    """[N, D] with mean 0 and size 1 as a whole."""
    x = tokens.flatten()
    return ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()).view_as(tokens)


def candidate_of(w: Weights, tokens: Tensor, places: list[int]) -> Tensor:
    """W_c of the candidate's tokens [N, D] -> [D]."""
    return w["candidate_map.weight"] @ torch.cat([tokens[p] for p in places])
