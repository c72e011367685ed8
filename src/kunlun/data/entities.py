"""Users and items: every id of the logs as a row index, and attributes aligned to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kunlun.data.raw import RawTable, suggest
from kunlun.data.values import BadValue, Int32, Int64, canonical, factorise
from kunlun.errors import SchemaError


@dataclass
class Column:
    """A raw column with one value per impression, event, user or item.

    locate: position here -> row of the raw table, -1 if it has none (an id without attributes).
    """

    values: pa.Array
    name: str
    table: RawTable
    locate: Callable[[int], int] | None = None

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Give a BadValue raised inside its file, column and row."""
        with self.table.blame(self.name, self.locate):
            yield


@dataclass
class Entities:
    """Users or items: their ids in row order, and where each table of attributes has them."""

    kind: str  # "users" or "items"
    tables: list[RawTable]
    id_names: set[str]  # raw columns that are the id itself
    home: RawTable  # of the id: impressions
    ids: pa.Array = field(default_factory=lambda: pa.nulls(0, pa.int64()))
    positions: list[Int64] = field(default_factory=list)  # a table: row of each entity, or -1

    def __len__(self) -> int:
        return len(self.ids)

    def owner(self, column: str, where: str) -> int:
        """Index of the table that has the column, -1 for the id. Raises SchemaError if none."""
        if column in self.id_names:
            return -1
        found = [index for index, table in enumerate(self.tables) if table.has(column)]
        if len(found) > 1:
            a, b = (self.tables[index].paths[0] for index in found[:2])
            raise SchemaError(
                f"{where}: '{column}' is in both {a} and {b}; rename it in one of them"
            )
        if found:
            return found[0]
        known = sorted({n for table in self.tables for names in table.names for n in names})
        hint = suggest(column, known or sorted(self.id_names))
        raise SchemaError(f"{where}: no table of tables.{self.kind} has '{column}'; {hint}")

    def want(self, column: str, where: str, *, keys: bool = False) -> None:
        """Ask for a column before loading; keys: see RawTable.want."""
        owner = self.owner(column, where)
        if owner >= 0:
            self.tables[owner].want(column, where, keys=keys)

    def column(self, name: str) -> Column:
        """Values aligned to the entities, null where the table lacks one."""
        owner = self.owner(name, self.kind)
        if owner < 0:
            return Column(self.ids, name, self.home, lambda _: -1)
        position = self.positions[owner]
        index = pa.array(position, mask=position < 0)
        values = self.tables[owner].column(name).take(index)
        return Column(values, name, self.tables[owner], lambda row: int(position[row]))

    def rows(self, keys: pa.Array) -> Int32:
        """Canonical ids -> int32 rows; all must exist."""
        codes, distinct = factorise(keys)
        found = pc.index_in(distinct.cast(self.ids.type), value_set=self.ids)
        rows: Int32 = found.to_numpy(zero_copy_only=False).astype(np.int32)[codes]
        return rows

    def index(self, others: list[pa.Array]) -> None:
        """Fix `ids` as the union of these keys and the tables' own, then the positions."""
        own = []
        for table in self.tables:
            with table.blame(key_of(table, self.home)):
                keys = no_null(canonical(table.column(key_of(table, self.home))))
                codes, distinct = factorise(keys)
                if len(distinct) < len(codes):
                    order = np.argsort(codes, kind="stable")
                    repeat = order[1:][np.diff(codes[order]) == 0].min()
                    raise BadValue(
                        f"'{keys[int(repeat)].as_py()}' occurs twice; a key must be unique: keep "
                        "one row for each",
                        row=int(repeat),
                    )
            own.append(keys)
        text = any(pa.types.is_large_string(k.type) for k in own + others)
        kind = pa.large_string() if text else pa.int64()
        parts = [k.unique().cast(kind) for k in own + others]
        union = pa.chunked_array(parts, kind).unique()
        self.ids = union.take(pc.sort_indices(union))
        for keys in own:
            position = np.full(len(self.ids), -1, np.int64)
            position[self.rows(keys)] = np.arange(len(keys))
            self.positions.append(position)


def key_of(table: RawTable, impressions: RawTable) -> str:
    part = "user" if table.where.startswith("tables.users") else "item"
    return table.table.key or str(getattr(impressions.table, part))


def no_null(keys: pa.Array) -> pa.Array:
    if keys.null_count:
        row = int(np.argmax(keys.is_null().to_numpy(zero_copy_only=False)))
        raise BadValue("found null, expected an id; drop the row or fill it in", row=row)
    return keys
