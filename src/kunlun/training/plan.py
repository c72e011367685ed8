"""What a run will cost, before it starts: `kunlun train ... --dry-run`.

Parameters and FLOPs come from the formulas beside the layers, at the history lengths
of a few training samples. Memory: tables and optimizer state by count; activations measured on
these samples, then scaled to the batch. Models are built with their tables cut short, so that a
plan does not need the memory it is asked about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kunlun.config import Config
from kunlun.features.batch import Batch
from kunlun.features.schema import EventType, Feature, Schema
from kunlun.models.flops import count, lengths_of
from kunlun.models.head import multi_task_loss
from kunlun.models.io import build
from kunlun.training import source
from kunlun.training.config import RunConfig

SAMPLES = 64  # enough for typical lengths, few enough for a laptop at paper size
SHORT_TABLE = 1024


@dataclass(frozen=True, kw_only=True)
class PlanRow(Config):
    """One module: forward FLOPs a sample and their share of the whole."""

    module: str
    parameters: int
    flops: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Plan(Config):
    """memory: what -> bytes. saved: what -> share of the forward FLOPs that it spares."""

    name: str
    data: str
    batch_size: int
    rows: list[PlanRow]
    parameters: int
    flops: float  # forward, a sample; training costs three times that
    memory: dict[str, int]
    saved: dict[str, float]


def make_plan(config: RunConfig) -> Plan:
    """The plan of a run; builds no table and trains nothing.

    Raises ConfigError, RunError, DataError (no samples to train on).
    """
    dataset = source.open_data(config.data)
    source.need_train_rows(dataset)
    few = dataclasses.replace(config.train, batch_size=SAMPLES, workers=0)
    batch: Batch = next(iter(source.make_loader(dataset, "train", few, shuffle=True)))
    lengths = lengths_of(batch)
    schema = short_tables(dataset.schema)
    model = _build(schema, config.model)
    sizes = dataset.schema.table_sizes.values()
    in_tables = sum(size * dim for size, dim in sizes)
    rows = [
        dataclasses.replace(row, parameters=in_tables) if row.module == "embedding.tables" else row
        for row in count(model, lengths)
    ]
    flops = sum(row.flops for row in rows)
    parameters = sum(row.parameters for row in rows)
    copies = 4 + (config.train.ema is not None)  # weight, gradient, two moments, average
    return Plan(
        name=config.name,
        data=config.data,
        batch_size=config.train.batch_size,
        rows=[
            PlanRow(
                module=row.module,
                parameters=row.parameters,
                flops=row.flops,
                share=row.flops / max(flops, 1.0),
            )
            for row in rows
        ],
        parameters=parameters,
        flops=flops,
        memory={
            "tables": 4 * in_tables,
            "optimizer of the tables": 4 * sum(size for size, _ in sizes),
            "dense weights and optimizer": 4 * (parameters - in_tables) * copies,
            "activations": _activation_bytes(model, config, batch)
            // len(batch)
            * config.train.batch_size,
        },
        saved=savings(schema, config.model, lengths),
    )


def _build(schema: Schema, section: Mapping[str, Any]) -> nn.Module:
    """The model, leaving the random state alone."""
    with torch.random.fork_rng(devices=[]):
        return build(schema, section, "plan")


def savings(
    schema: Schema, section: Mapping[str, Any], lengths: dict[str, Tensor]
) -> dict[str, float]:
    """Share of the forward FLOPs that CompSkip and the window spare (paper 4.4.1 and 4.3.3).

    section: the `model:` part of a configuration. lengths: event type -> history lengths, int64
    [n]. Each is measured against the same model without it, everything else as configured.
    """
    if section.get("name", "kunlun") != "kunlun":
        return {}
    events = section.get("events", {})
    without: dict[str, dict[str, Any]] = {
        "CompSkip": {"comp_skip": False},
        "window": {
            "tower": {**section.get("tower", {}), "window": None},
            "events": {kind: {**keys, "window": None} for kind, keys in events.items()},
        },
    }
    flops = forward_flops(schema, section, lengths)
    return {
        what: 1 - flops / max(forward_flops(schema, {**section, **change}, lengths), 1.0)
        for what, change in without.items()
    }


def forward_flops(schema: Schema, section: Mapping[str, Any], lengths: dict[str, Tensor]) -> float:
    """Forward FLOPs a sample of the model that `section` describes."""
    return sum(row.flops for row in count(_build(schema, section), lengths))


def _activation_bytes(model: nn.Module, config: RunConfig, batch: Batch) -> int:
    """Bytes that autograd keeps between forward and backward, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    bf16 = config.train.precision == "bf16"
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        logits = model(_short_ids(batch))
        # The graph must live until the count is taken, or freed storage would be counted twice.
        loss, _ = multi_task_loss(
            logits, batch.labels, batch.weights, torch.ones(batch.labels.shape[1])
        )
    del loss
    return sum(kept.values())


def short_tables(schema: Schema) -> Schema:
    """The schema with tables cut to a few rows: a model that costs the same and takes no memory."""

    def cut(features: dict[str, Feature]) -> dict[str, Feature]:
        return {
            name: dataclasses.replace(f, size=min(f.size, SHORT_TABLE)) if f.size else f
            for name, f in features.items()
        }

    def cut_event(event: EventType) -> EventType:
        return dataclasses.replace(event, features=cut(event.features))

    return dataclasses.replace(
        schema,
        features=cut(schema.features),
        events={kind: cut_event(event) for kind, event in schema.events.items()},
    )


def _short_ids(batch: Batch) -> Batch:
    def cut(ids: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor % SHORT_TABLE for name, tensor in ids.items()}

    return dataclasses.replace(
        batch,
        categorical=cut(batch.categorical),
        multi={name: m.with_values(m.values % SHORT_TABLE) for name, m in batch.multi.items()},
        events={
            kind: dataclasses.replace(events, ids=cut(events.ids))
            for kind, events in batch.events.items()
        },
    )
