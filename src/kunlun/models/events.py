"""Event histories, rearranged: for every row of a request, shortened, merged.

Shapes: B rows, R requests, L packed events of one type, d their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.layers.norm import layer_norm
from kunlun.ops.jagged import Jagged
from kunlun.ops.time_buckets import time_buckets

AGE_BUCKETS = 64  # two an octave of seconds

Events = dict[str, tuple[Jagged, Tensor]]  # type -> ([L, d], age float64 [L] seconds)


def expand(events: Events, request: Tensor | None) -> Events:
    """Every row its own copy of its request's events; request int64 [B], None: one a row."""
    if request is None:
        return events
    return {kind: _select(s, age, request) for kind, (s, age) in events.items()}


def _select(s: Jagged, age: Tensor, request: Tensor) -> tuple[Jagged, Tensor]:
    packed = s.select(request)
    return packed, s.with_values(age).select(request).values


def add_ages(s: Jagged, age: Tensor, table: Tensor) -> Jagged:
    """s [L, d] plus the row of table [AGE_BUCKETS, d] for every event's age [L]."""
    return s.with_values(s.values + table.index_select(0, time_buckets(age, AGE_BUCKETS)))


def with_ages(events: Events, table: Tensor) -> Events:
    """`add_ages` for every type, of one table."""
    return {kind: (add_ages(s, age, table), age) for kind, (s, age) in events.items()}


def newest(s: Jagged, age: Tensor, history: int) -> tuple[Jagged, Tensor]:
    """Keep the last `history` events of every sequence."""
    if history >= s.max_len:
        return s, age
    places = s.newest_places(history)
    return s.shortened(s.values.index_select(0, places), history), age.index_select(0, places)


def merge_by_time(events: Events, kinds: Tensor) -> tuple[Jagged, Tensor]:
    """All types as one sequence a request, oldest first: ([sum of L, d], age float64 [sum of L]).

    kinds [types, d]: added to the events of each type, in the order of `events`, of which there
    is at least one. At equal times the earlier type comes first. max_len is the sum of the caps.
    """
    sequences = [s for s, _ in events.values()]
    values = torch.cat([s.values + kind for s, kind in zip(sequences, kinds, strict=True)])
    age = torch.cat([age for _, age in events.values()])
    segments = torch.cat([s.segments for s in sequences])
    by_age = torch.argsort(age, descending=True, stable=True)
    order = by_age[torch.argsort(segments[by_age], stable=True)]
    offsets = torch.stack([s.offsets.long() for s in sequences]).sum(0)
    # index_select: its gradient is a sum of rows, that of values[order] an atomic scatter
    merged = Jagged(values.index_select(0, order), offsets, sum(s.max_len for s in sequences))
    return merged, age[order]


def level(x: Tensor) -> Tensor:
    """[B, N, D], each row brought to unit size as a whole, so that its tokens keep their ratios.

    Ids enter at rms .02, where a product of two would vanish.
    """
    return layer_norm(x.flatten(1)).view_as(x)
