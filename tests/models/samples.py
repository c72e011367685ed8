"""Schemas and random batches for model tests."""

from __future__ import annotations

from typing import Any

import torch

from kunlun.config import parse
from kunlun.features.batch import Batch, EventSequence, Jagged
from kunlun.features.schema import Schema
from kunlun.models.events import Events

NOW = 1_700_000_000_000  # ms


def make_schema(event_types: tuple[str, ...] = ("click", "view"), max_len: int = 12) -> Schema:
    """Two tasks, every kind of input, any event types."""
    item = {"role": "item", "kind": "categorical", "size": 50, "dim": 8}
    user = {"role": "user", "kind": "categorical", "size": 20, "dim": 8}
    counter = {"role": "item", "kind": "counter", "keys": ["item_id"], "label": "click"}
    return parse(
        Schema,
        {
            "tables": {"impressions": {"files": "x.parquet"}},
            "split": {"valid": "2024-01-01", "test": "2024-01-02"},
            "labels": {"click": {}, "buy": {"given": "click"}},
            "features": {
                "user_id": user,
                "item_id": item,
                "hour": {
                    "role": "context",
                    "kind": "timestamp",
                    "part": "hour",
                    "size": 26,
                    "dim": 4,
                },
                "tags": {"role": "item", "kind": "multi", "size": 30, "dim": 4},
                "price": {"role": "item", "kind": "numeric", "missing": "token"},
                "ctr": counter,
            },
            "events": {
                kind: {
                    "max_len": max_len,
                    "item_features": ["item_id", "price"],
                    "features": {
                        "place": {"role": "event", "kind": "categorical", "size": 9, "dim": 4}
                    },
                }
                for kind in event_types
            },
        },
        "test schema",
    )


def make_batch(schema: Schema, lengths: dict[str, list[int]], rows: int, seed: int = 0) -> Batch:
    """Random values; lengths per event type, one entry a row."""
    g = torch.Generator().manual_seed(seed)

    def ids(size: int, n: int) -> torch.Tensor:
        return torch.randint(0, size, (n,), generator=g)

    categorical, multi = {}, {}
    for entry in schema.inputs:
        if entry.kind == "categorical":
            categorical[entry.name] = ids(entry.feature.size or 0, rows)
        elif entry.kind == "multi":
            counts = torch.randint(0, 4, (rows,), generator=g)
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            multi[entry.name] = Jagged(ids(entry.feature.size or 0, int(offsets[-1])), offsets, 8)
    events = {}
    for kind in schema.events:
        offsets = torch.tensor([0, *lengths[kind]]).cumsum(0)
        total, inputs = int(offsets[-1]), schema.event_inputs(kind)
        numeric = sum(i.kind == "numeric" for i in inputs)
        gaps = torch.randint(1, 10**7, (total,), generator=g)
        events[kind] = EventSequence(
            ids={
                i.name: ids(i.feature.size or 0, total) for i in inputs if i.kind == "categorical"
            },
            numeric=torch.randn(total, numeric, generator=g),
            timestamps=NOW - gaps.flip(0).cumsum(0).flip(0),
            offsets=offsets,
            max_len=schema.events[kind].max_len,
        )
    return Batch(
        categorical=categorical,
        multi=multi,
        numeric=torch.randn(rows, len(schema.numeric), generator=g),
        events=events,
        request=None,
        request_time=torch.full((rows,), NOW),
        labels=torch.randint(0, 2, (rows, len(schema.tasks)), generator=g).float(),
        weights=torch.ones(rows),
        group=torch.arange(rows),
    )


def backbone_inputs(model: Any, batch: Batch) -> tuple[torch.Tensor, Events]:
    """What the embedding half gives for a batch, in float64 and cut from its graph."""
    tokens, events = model.embedding(batch)
    double = {
        kind: (s.with_values(s.values.detach().double()), age.double())
        for kind, (s, age) in events.items()
    }
    return tokens.detach().double(), double


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name -> a float64 copy, as an implementation of its own wants them."""
    return {name: p.detach().double().clone() for name, p in module.named_parameters()}
