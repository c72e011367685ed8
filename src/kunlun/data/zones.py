"""Times without a zone: refused where it is not clear which instants they are."""

from __future__ import annotations

from collections.abc import Iterator

from kunlun.data.encode import occurrences
from kunlun.data.entities import Column
from kunlun.data.source import Log
from kunlun.data.times import has_zone
from kunlun.errors import SchemaError


def check_zones(log: Log) -> None:
    """Raise SchemaError for times without a zone beside times that have one (numbers do), unless
    their table says utc_offset; and for a utc_offset where there is no clock."""
    for scope, name, feature in occurrences(log.schema):
        if feature.part == "age" and feature.utc_offset:
            raise SchemaError(
                f"features.{scope}{name}.utc_offset: an age has no clock; set utc_offset of the "
                "table instead"
            )
    local, clear = list[Column](), list[Column]()
    for column in _columns(log):
        zone = has_zone(column.values)
        if zone is not None:
            undeclared = not zone and column.table.table.utc_offset is None
            (local if undeclared else clear).append(column)
    if local and clear:
        a, b = local[0], clear[0]
        raise SchemaError(
            f"{a.table.where}.utc_offset is missing: times of '{a.name}' have no zone, unlike "
            f"'{b.name}' of {b.table.where}; say how many hours they are ahead of UTC (0: UTC)"
        )


def _columns(log: Log) -> Iterator[Column]:
    """Every raw column that is read as times."""
    tables = log.schema.tables
    yield log.column("context", str(tables.impressions.time))
    if log.events is not None:
        yield log.column("event", log.event_time_name)
    for _, name, feature in occurrences(log.schema):
        if feature.kind == "timestamp":
            yield log.of(name, feature)
    for event in log.schema.events.values():
        if event.lists is not None:
            yield log.users.column(event.lists.time)
