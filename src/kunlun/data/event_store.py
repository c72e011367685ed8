"""The event store: one table per event type, and each sample's cut into it.

A history is never copied into a sample: it is the slice of the user's events before the cut, so
storage is O(events + samples) and nothing at or after the request can leak in by construction.
The tables are uncompressed Arrow files, not Parquet: they are memory-mapped and gathered without
a copy, so the memory of a training process does not grow with the log, and workers share pages.

events/TYPE.arrow: time int64 ms, item int32 (row of items.parquet), feature.NAME; sorted by
(user, time, source row), seeded list items before dated events of the same time.
events/TYPE.offsets.arrow: offset int64 [users + 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kunlun.data.entities import Column
from kunlun.data.past import Past
from kunlun.data.source import Log
from kunlun.data.values import Int32, Int64
from kunlun.errors import DataError, SchemaError


@dataclass
class EventTable:
    """Events of one type in memory while preparing; n events.

    source int64 [n]: row of the raw events table, -1 for an item of a list.
    """

    user: Int32
    item: Int32
    time: Int64
    source: Int64
    offsets: Int64  # [users + 1]
    past: Past

    def cut(self, users: Int32, times: Int64) -> Int64:
        """End of each user's events strictly before `times`; int64 [n of users]."""
        return self.past.before(users, times)


def build(log: Log, kind: str, *, allow_absent: bool = False) -> EventTable:
    """Select, seed and sort the events of one type.

    Raises SchemaError if a raw type never occurs, unless `allow_absent` (scoring new logs) or the
    type is only the default name of a seeded history.
    """
    spec = log.schema.events[kind]
    codes = []
    for name in spec.types or [kind]:
        if name in log.event_types:
            codes.append(log.event_types.index(name))
        elif not allow_absent and (spec.types or not spec.lists):
            known = ", ".join(sorted(log.event_types)[:20])
            raise SchemaError(
                f"events.{kind}.types: '{name}' never occurs in "
                f"{log.events.paths[0] if log.events else 'tables.events'}; it has {known}"
            )
    rows = np.flatnonzero(np.isin(log.event_type, codes))
    user, item, time, source = (
        log.event_user[rows],
        log.event_item[rows],
        log.event_time[rows],
        rows,
    )
    if kind in log.lists:
        seed_user, seed_item, seed_time = log.lists[kind]
        user, item = np.concatenate([seed_user, user]), np.concatenate([seed_item, item])
        time = np.concatenate([seed_time, time])
        source = np.concatenate([np.full(len(seed_user), -1, np.int64), rows])
    past = Past(user, time)  # stable: seeds, then source rows
    counts = np.bincount(user, minlength=len(log.users))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    order = past.order
    return EventTable(user[order], item[order], time[order], source[order], offsets, past)


def own_column(log: Log, kind: str, name: str, store: EventTable) -> Column:
    """Raw values of an event's own feature: one for each dated event of the type, in its order.

    What other types hold in that column plays no part.
    """
    column = log.of(name, log.schema.events[kind].features[name])
    rows = store.source[store.source >= 0]
    values = column.values.take(pa.array(rows))
    return Column(values, column.name, column.table, lambda row: int(rows[row]))


def write(path: Path, columns: dict[str, NDArray[np.generic]]) -> None:
    """Columns [n] as one uncompressed Arrow batch."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def open_mapped(path: Path) -> dict[str, NDArray[np.generic]]:
    """Inverse of write, memory-mapped and read-only. Raises DataError if torn or missing."""
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            table = pa.Table.from_batches(batches, reader.schema)
        if table.num_rows == 0:
            return {f.name: np.zeros(0, f.type.to_pandas_dtype()) for f in table.schema}
        (batch,) = batches
        return {name: batch.column(name).to_numpy() for name in table.column_names}
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "torn"
        raise DataError(f"cannot be read ({reason}); prepare the data again", file=path) from None
