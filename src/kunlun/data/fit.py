"""Fit the encoders on the training days.

What counts, per feature: user, item and context values once a train impression; an item's also
once an event before the end of train of every type that lists it under item_features (seeded list
items included); an event's own values once such an event. Features that share a table are
counted together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kunlun.data.counters import Tally, combined_key, tally, tally_events
from kunlun.data.encode import Encoders, age, is_clock, is_keyed, keys, measure, occurrences
from kunlun.data.event_store import EventTable, own_column
from kunlun.data.labels import Bools
from kunlun.data.numeric import Buckets, Scaler
from kunlun.data.source import Log
from kunlun.data.times import times
from kunlun.data.values import Float64, Int64
from kunlun.data.vocabulary import Counts, Hashing, Vocabulary
from kunlun.errors import SchemaError
from kunlun.features.schema import Feature, Schema


@dataclass
class Train:
    """What belongs to train: impressions [N], and the moment before which events do."""

    rows: Bools
    end: int  # ms


def tallies(
    log: Log, labels: dict[str, Float64], stores: dict[str, EventTable]
) -> dict[str, Tally]:
    """The counts behind every counter feature, [N]; counters over the same keys share a key."""
    found: dict[str, Tally] = {}
    codes: dict[tuple[str, ...], Int64] = {}
    for name, feature in log.schema.features.items():
        if feature.kind == "counter" and feature.of is not None:
            types = stores[feature.of], stores[str(feature.label)]
            found[name] = tally_events(log, f"features.{name}", feature, *types)
        elif feature.kind == "counter":
            which = tuple(feature.keys)
            if which not in codes:
                codes[which] = combined_key(log, f"features.{name}", feature)
            delay = round(feature.delay * 1000)
            found[name] = tally(codes[which], log.time, labels[str(feature.label)], delay)
    return found


def counter_numbers(tally: Tally, feature: Feature, prior: float) -> dict[str, Float64]:
    """The two numbers of a counter, by suffix.

    CPUs disagree on the last bit of log1p: in float32 a count falls on the same side of a
    bucket's edge wherever it is encoded.
    """
    count = np.log1p(tally.known).astype(np.float32).astype(np.float64)
    return {"rate": tally.rate(feature.strength, prior), "count": count}


def fit(
    log: Log,
    stores: dict[str, EventTable],
    labels: dict[str, Float64],
    counted: dict[str, Tally],
    train: Train,
) -> Encoders:
    """Vocabularies, scalings, buckets and priors from train alone."""
    encoders = Encoders()
    sharers: dict[str, list[tuple[str, str, Feature]]] = {}
    for scope, name, feature in occurrences(log.schema):
        if is_keyed(feature):
            sharers.setdefault(feature.table or name, []).append((scope, name, feature))
        elif feature.kind == "counter":
            encoders.priors[name] = _prior(feature, labels, stores, train)
            for part, x in counter_numbers(counted[name], feature, encoders.priors[name]).items():
                encoders.numbers[f"{name}.{part}"] = _number(feature, x[train.rows])
        elif not is_clock(feature):
            x = _train_numbers(log, stores, train, scope, name, feature)
            encoders.numbers[scope + name] = _number(feature, x)
    for table, members in sharers.items():
        encoders.tables[table] = _table(log, stores, train, table, members)
    return encoders


def _prior(
    feature: Feature, labels: dict[str, Float64], stores: dict[str, EventTable], train: Train
) -> float:
    """Rate of a counter's positives in train; 0.5 if nothing is known."""
    if feature.of is not None:
        total, positive = (
            int((stores[kind].time < train.end).sum()) for kind in (feature.of, str(feature.label))
        )
        return min(1.0, positive / total) if total else 0.5
    known = labels[str(feature.label)][train.rows]
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else 0.5


def _number(feature: Feature, x: Float64) -> Scaler | Buckets:
    return Buckets.fit(feature.buckets, x) if feature.buckets else Scaler.fit(feature.transform, x)


def _train_numbers(
    log: Log, stores: dict[str, EventTable], train: Train, scope: str, name: str, feature: Feature
) -> Float64:
    """Values of a numeric or age feature over train, NaN where missing."""
    if scope:
        store = stores[scope[:-1]]
        column = own_column(log, scope[:-1], name, store)
        with column.blame():
            return measure(feature, column.values)[store.time[store.source >= 0] < train.end]
    column = log.of(name, feature)
    with column.blame():
        if feature.part == "age":
            since = times(column.values, *column.table.form)
        else:
            x = measure(feature, column.values)
    rows = log.rows(feature.role)[train.rows]
    return age(since[rows], log.time[train.rows]) if feature.part == "age" else x[rows]


def _table(
    log: Log,
    stores: dict[str, EventTable],
    train: Train,
    table: str,
    members: list[tuple[str, str, Feature]],
) -> Vocabulary | Hashing:
    first = members[0][2]
    for scope, name, feature in members[1:]:
        for key in ("hash_buckets", "min_count"):
            if getattr(feature, key) != getattr(first, key):
                raise SchemaError(
                    f"{scope}{name}: {key} is {getattr(feature, key)}, but {members[0][1]} shares "
                    f"table '{table}' with {getattr(first, key)}; sharers must agree"
                )
    parts = []
    text = False
    for scope, name, feature in members:
        if scope:
            column = own_column(log, scope[:-1], name, stores[scope[:-1]])
        else:
            column = log.of(name, feature)
        with column.blame():
            found, offsets = keys(feature, column.values)
        text |= pa.types.is_large_string(found.type)
        if first.hash_buckets is None:
            weights = _weights(log, stores, train, scope, name, feature)
            if offsets is not None:
                weights = np.repeat(weights, np.diff(offsets))
            parts.append(Counts.of(found, weights))
    if first.hash_buckets is not None:
        return Hashing(first.hash_buckets, text)
    return Vocabulary.fit(parts, first.min_count)


def _weights(
    log: Log, stores: dict[str, EventTable], train: Train, scope: str, name: str, feature: Feature
) -> Int64:
    """How often each position of the column counts, int64 [positions]."""
    if scope:
        store = stores[scope[:-1]]
        return (store.time[store.source >= 0] < train.end).astype(np.int64)
    if feature.role == "context":
        return train.rows.astype(np.int64)
    if feature.role == "user":
        return np.bincount(log.user[train.rows], minlength=len(log.users))
    weights = np.bincount(log.item[train.rows], minlength=len(log.items))
    for kind, event in log.schema.events.items():
        if name in event.item_features:
            store = stores[kind]
            items = store.item[store.time < train.end]
            weights = weights + np.bincount(items, minlength=len(log.items))
    return weights


def check_like(schema: Schema, old: Schema) -> None:
    """Raise SchemaError naming the first key in which old encoders would not fit `schema`."""
    if list(schema.labels) != list(old.labels):
        raise SchemaError(
            f"labels: {list(schema.labels)} differ from {list(old.labels)} of --like; keep names "
            "and order"
        )
    mine = {s + n: f for s, n, f in occurrences(schema)}
    theirs = {s + n: f for s, n, f in occurrences(old)}
    if list(mine) != list(theirs):
        name = next(iter(sorted(mine.keys() ^ theirs.keys())), "the order of features")
        raise SchemaError(f"features: '{name}' differs from --like; keep the same features")
    for name, feature in mine.items():
        for key, value in feature.to_dict().items():
            was = getattr(theirs[name], key)
            if key not in ("size", "column") and value != was:
                raise SchemaError(
                    f"features.{name}.{key}: {value!r} differs from {was!r} of --like; use the "
                    "same definition, or prepare without --like"
                )
    for kind in schema.events.keys() | old.events.keys():
        here, there = schema.events.get(kind), old.events.get(kind)
        for key in ("max_len", "item_features"):
            if getattr(here, key, None) != getattr(there, key, None):
                raise SchemaError(
                    f"events.{kind}.{key}: {getattr(here, key, None)!r} differs from "
                    f"{getattr(there, key, None)!r} of --like"
                )
