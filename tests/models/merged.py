"""One sequence a row from all event types, for implementations that know one, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.models.events import Events
from tests.models.plain import Weights, half_octaves


def merged_row(
    w: Weights,
    events: Events,
    i: int,
    *,
    ages: bool,
    history: int | None = None,
    at: str = "history",
) -> tuple[list[Tensor], list[float]]:
    """The events of sample i, oldest first, and their ages: x + type (+ age's embedding).

    at: the module that holds both embeddings.
    """
    found = []
    for kind, (s, age) in enumerate(events.values()):
        for j in range(int(s.offsets[i]), int(s.offsets[i + 1])):
            x = s.values[j] + w[f"{at}.kind"][kind]
            if ages:
                x = x + w[f"{at}.age"][min(half_octaves(float(age[j])), 63)]
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
