"""Schemas and random batches in memory, as a loader would hand them to the trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kunlun.bench.shapes import log_normal
from kunlun.config import parse
from kunlun.features.batch import Batch, EventSequence
from kunlun.features.schema import Schema

EVENTS = ("click", "impression", "conversion")
CONTEXT = 31  # features that are no item's
IDS = 10_000  # of every table
NOW = 1_700_000_000_000  # ms


def make_schema(longest: int) -> Schema:
    """Two tasks, 32 categorical features, three event types of up to `longest` events."""
    categorical = {"kind": "categorical", "size": IDS}
    values: dict[str, Any] = {
        "tables": {"impressions": {"files": "none"}},
        "split": {"valid": "2025-01-01T00:00:00+00:00", "test": "2025-01-02T00:00:00+00:00"},
        "labels": {"click": {}, "conversion": {"given": "click"}},
        "features": {
            "item": {"role": "item", **categorical},
            **{f"field{i}": {"role": "context", **categorical} for i in range(CONTEXT)},
        },
        "events": {kind: {"max_len": longest, "item_features": ["item"]} for kind in EVENTS},
    }
    return parse(Schema, values, "the benchmark's schema")


def make_batch(schema: Schema, rows: int, mean: float, longest: int, seed: int) -> Batch:
    """Random ids and labels; lengths of every type log-normal around `mean`, up to `longest`."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> Tensor:
        return torch.randint(0, IDS, (count,), generator=generator)

    events = {}
    for kind in schema.events:
        lengths = log_normal(rows, mean, longest, generator)
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        total = int(offsets[-1])
        gaps = torch.randint(1, 10**6, (total,), generator=generator)
        events[kind] = EventSequence(
            ids={entry.name: ids(total) for entry in schema.event_inputs(kind)},
            numeric=torch.zeros(total, 0),
            timestamps=NOW - gaps.flip(0).cumsum(0).flip(0),
            offsets=offsets,
            max_len=longest,
        )
    return Batch(
        categorical={entry.name: ids(rows) for entry in schema.inputs},
        multi={},
        numeric=torch.zeros(rows, 0),
        events=events,
        request=None,
        request_time=torch.full((rows,), NOW),
        labels=torch.randint(0, 2, (rows, len(schema.tasks)), generator=generator).float(),
        weights=torch.ones(rows),
        group=torch.arange(rows),
    )
