"""The logs of a schema in memory: ids as row indices, times as int64 ms, columns on demand.

Shapes: N impressions, E events, U users, I items. Users and items are the sorted union of the ids
in their own tables, the impressions, the events and the list histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kunlun.data.encode import is_text
from kunlun.data.entities import Column, Entities, key_of, no_null
from kunlun.data.histories import list_events
from kunlun.data.raw import RawTable
from kunlun.data.times import require_times, times
from kunlun.data.values import Int32, Int64, canonical, factorise
from kunlun.errors import SchemaError
from kunlun.features.schema import EventType, Feature, ListHistory, Schema, Table


@dataclass
class Log:
    """The raw logs of one schema. user, item int32 [N], time int64 [N] of the impressions."""

    schema: Schema
    impressions: RawTable
    events: RawTable | None
    users: Entities
    items: Entities
    user: Int32
    item: Int32
    time: Int64
    event_user: Int32
    event_item: Int32
    event_time: Int64
    event_type: Int32  # code into event_types
    event_types: list[str]
    event_time_name: str
    lists: dict[str, tuple[Int32, Int32, Int64]]  # type -> user, item, time of seeded events

    def column(self, feature_role: str, name: str) -> Column:
        """Raw values: one a user, an item, an impression (context) or an event."""
        if feature_role == "user":
            return self.users.column(name)
        if feature_role == "item":
            return self.items.column(name)
        table = self.events if feature_role == "event" else self.impressions
        assert table is not None
        return Column(table.column(name), name, table)

    def of(self, name: str, feature: Feature) -> Column:
        """The raw column behind a feature."""
        if feature.kind == "timestamp" and feature.column is None:
            if feature.role == "context":
                return self.column("context", str(self.schema.tables.impressions.time))
            if feature.role == "event":
                return self.column("event", self.event_time_name)
        return self.column(feature.role, feature.column or name)

    def rows(self, role: str) -> NDArray[np.integer[Any]]:
        """Of each impression [N]: where its value lies in a raw column of that role."""
        return {"user": self.user, "item": self.item}.get(role, np.arange(len(self.time)))


def read_log(schema: Schema, root: Path, *, labels_required: bool = True) -> Log:
    """Open, check and read the tables of a schema.

    root: folder that relative files start from. labels_required False: label, truth and weight
    columns may be absent (scoring new logs). Raises SchemaError or DataError, one line each.
    """
    tables = schema.tables
    impressions = RawTable(tables.impressions, root, "tables.impressions")
    events = RawTable(tables.events, root, "tables.events") if tables.events else None
    users, items = (
        Entities(
            kind,
            [RawTable(t, root, f"tables.{kind}[{i}]") for i, t in enumerate(found)],
            {n for n in (getattr(tables.impressions, kind[:-1]), *(t.key for t in found)) if n},
            impressions,
        )
        for kind, found in (("users", tables.users), ("items", tables.items))
    )
    names = [_name(impressions, part) for part in ("user", "item", "time")]
    event_names = [_name(events, p, tables.impressions) for p in ("user", "item", "time", "type")]
    _want_all(schema, impressions, events, users, items, labels_required)
    for part, name in zip(("user", "item", "time"), names, strict=True):
        impressions.want(name, f"tables.impressions.{part}", keys=part != "time")
    if events is not None:
        for part, name in zip(("user", "item", "time", "type"), event_names, strict=True):
            events.want(name, f"tables.events.{part}", keys=part != "time")
    for table in [impressions, events, *users.tables, *items.tables]:
        if table is not None:
            table.load()
    user, item = (_keys(impressions, name) for name in names[:2])
    time = _times(impressions, names[2])
    event_user = event_item = pa.nulls(0, pa.int64())
    event_time, codes, kinds = np.zeros(0, np.int64), np.zeros(0, np.int32), list[str]()
    if events is not None:
        event_user, event_item = (_keys(events, name) for name in event_names[:2])
        event_time = _times(events, event_names[2])
        codes, distinct = factorise(_keys(events, event_names[3]))
        kinds = [str(value) for value in distinct.to_pylist()]
    users.index([user, event_user])
    seeds = {
        kind: list_events(event.lists, *(users.column(n) for n in _seeds(event.lists)))
        for kind, event in schema.events.items()
        if event.lists is not None
    }
    items.index([item, event_item, *(keys for _, keys, _ in seeds.values())])
    return Log(
        schema, impressions, events, users, items,
        users.rows(user), items.rows(item), time,
        users.rows(event_user), items.rows(event_item), event_time, codes, kinds, event_names[2],
        {k: (rows, items.rows(keys), at) for k, (rows, keys, at) in seeds.items()},
    )  # fmt: skip


def _want_all(
    schema: Schema,
    impressions: RawTable,
    events: RawTable | None,
    users: Entities,
    items: Entities,
    labels_required: bool,
) -> None:
    """Ask for the columns of features, labels, counters, group, weight and list histories."""
    entities = {"user": users, "item": items}
    for name, feature in schema.features.items():
        where, column = f"features.{name}.column", feature.column or name
        if feature.kind == "counter":
            for key in feature.keys:
                if key not in schema.features:
                    impressions.want(key, f"features.{name}.keys", keys=True)
        elif feature.role in entities:
            entities[feature.role].want(column, where, keys=is_text(feature))
        elif feature.column is not None or feature.kind != "timestamp":
            impressions.want(column, where, keys=is_text(feature))
    for name, label in schema.labels.items():
        for part, raw in (("column", label.column or name), ("truth", label.truth)):
            if raw is not None and (labels_required or impressions.has(raw)):
                impressions.want(raw, f"labels.{name}.{part}")
    if schema.group is not None:
        impressions.want(schema.group, "group", keys=True)
    if schema.weight is not None and (labels_required or impressions.has(schema.weight)):
        impressions.want(schema.weight, "weight")
    for kind, event in schema.events.items():
        _want_event(kind, event, events, users)
    for found in entities.values():
        for table in found.tables:
            table.want(key_of(table, impressions), f"{table.where}.key", keys=True)


def _want_event(kind: str, event: EventType, events: RawTable | None, users: Entities) -> None:
    if events is None and (event.types or not event.lists):
        raise SchemaError(f"events.{kind}: there is no table tables.events to read it from")
    for name, feature in event.features.items():
        if events is None:
            raise SchemaError(f"events.{kind}.features.{name}: list histories have item ids only")
        if feature.column is not None or feature.kind != "timestamp":
            where = f"events.{kind}.features.{name}.column"
            events.want(feature.column or name, where, keys=is_text(feature))
    if event.lists:
        for part, column in zip(("column", "time"), _seeds(event.lists), strict=True):
            where = f"events.{kind}.lists.{part}"
            if users.owner(column, where) < 0:
                raise SchemaError(f"{where}: '{column}' is the user's id; expected a column of one")
            users.want(column, where)


def _seeds(spec: ListHistory) -> tuple[str, str]:
    return spec.column, spec.time


def _name(table: RawTable | None, part: str, default: Table | None = None) -> str:
    if table is None:
        return ""
    found = getattr(table.table, part) or (getattr(default, part) if default else None)
    if found is None:
        raise SchemaError(f"{table.where}.{part} is missing; name the column of {table.paths[0]}")
    return str(found)


def _keys(table: RawTable, name: str) -> pa.Array:
    with table.blame(name):
        return no_null(canonical(table.column(name)))


def _times(table: RawTable, name: str) -> Int64:
    with table.blame(name):
        return require_times(times(table.column(name), *table.form))
