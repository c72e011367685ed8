"""Raw logs and a schema -> a dataset directory of point-in-time correct samples.

schema.yaml (sizes filled in), encoders/, manifest.json,
users.parquet, items.parquet: row = the index samples and events use; id, feature.NAME;
events/: see event_store.py;
samples/{train,valid,test}/part-*.parquet, in order of (time, source row), row groups of 65,536:
    user, item int32; time int64 ms; row int64 (source row of the impressions); weight float32;
    group int64; cut_TYPE int64 (end of the history in events/TYPE); label.NAME, truth.NAME
    float32 and float64, NaN = unknown; feature.NAME int32 ids, float32 numbers or lists of ids.

The projected columns of the logs are held in memory while preparing; loading is another matter.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kunlun.config import write_yaml
from kunlun.data import event_store
from kunlun.data.dataset import Dataset
from kunlun.data.directory import check_free, whole
from kunlun.data.encode import Encoded, Encoders, age
from kunlun.data.entities import Column
from kunlun.data.event_store import EventTable
from kunlun.data.fit import Train, check_like, counter_numbers, fit, tallies
from kunlun.data.labels import SPLITS, bounds, read_groups, read_labels, read_truths, read_weights
from kunlun.data.manifest import describe, iso, missing_past
from kunlun.data.schema_file import load_schema
from kunlun.data.source import Log, read_log
from kunlun.data.times import times
from kunlun.data.values import Int64, Ragged
from kunlun.data.zones import check_zones
from kunlun.errors import DataError
from kunlun.features.schema import Schema

ROW_GROUP = 65_536
ROWS_PER_FILE = 16 * ROW_GROUP
Columns = dict[str, Encoded | NDArray[np.generic]]


@dataclass
class Prepared:
    """A dataset directory in memory: what `prepare` writes and `validate` only makes."""

    schema: Schema
    encoders: Encoders
    users: Columns
    items: Columns
    user_ids: pa.Array
    item_ids: pa.Array
    events: dict[
        str, tuple[dict[str, NDArray[Any]], Int64]
    ]  # type -> columns [n], offsets [users + 1]
    samples: Columns  # [N], all impressions
    splits: dict[str, Int64]  # split -> rows of samples, in order
    manifest: dict[str, Any]


def prepare(
    schema_path: Path, out: Path, like: Path | None = None, root: Path | None = None
) -> dict[str, Any]:
    """Write the dataset directory `out`; returns its manifest.

    Args:
        like: a dataset directory whose encoders and sizes are reused, so that a model trained on
            it can score these logs; labels and weights may then be absent and splits empty. The
            files of earlier days must still be there: histories and counters are made of them.
        root: folder that the schema's relative files start from; default: the schema's.
    Raises: SchemaError, ConfigError or DataError with one line; then nothing was written.
    """
    check_free(out)
    prepared = assemble(schema_path, like=like, root=root)
    with whole(out) as folder:
        _write(prepared, folder)
    return prepared.manifest


def assemble(schema_path: Path, *, like: Path | None = None, root: Path | None = None) -> Prepared:
    """Read, check, fit and encode; see `prepare`."""
    schema = load_schema(schema_path)
    span = bounds(schema.split)
    old = None if like is None else Dataset.open(like)
    if old is not None:
        check_like(schema, old.schema)
    log = read_log(schema, root or schema_path.parent, labels_required=like is None)
    check_zones(log)
    labels, truths = read_labels(log), read_truths(log)
    splits = {k: _order(log, *span[k]) for k in SPLITS}
    _refuse_empty(log, splits, like is not None)
    stores = {k: event_store.build(log, k, allow_absent=like is not None) for k in schema.events}
    counted = tallies(log, labels, stores)
    if like is None:
        train = np.zeros(len(log.time), bool)
        train[splits["train"]] = True
        encoders = fit(log, stores, labels, counted, Train(train, span["valid"][0]))
    else:
        encoders = Encoders.load(like / "encoders")
    samples: Columns = {
        "user": log.user,
        "item": log.item,
        "time": log.time,
        "row": np.arange(len(log.time)),
        "weight": read_weights(log),
        "group": read_groups(log),
        **{f"cut_{kind}": store.cut(log.user, log.time) for kind, store in stores.items()},
        **{f"label.{name}": y.astype(np.float32) for name, y in labels.items()},
        **{f"truth.{name}": p for name, p in truths.items()},
    }
    for name, feature in schema.features.items():
        if feature.kind == "counter":
            for part, x in counter_numbers(counted[name], feature, encoders.priors[name]).items():
                key = f"{name}.{part}"
                samples |= _prefixed(encoders.encode_numbers(key, feature, x))
        elif feature.part == "age":
            samples |= _prefixed(_ages(log, encoders, name))
        elif feature.role == "context":
            samples |= _prefixed(_encode(log, encoders, name))
    resolved = _resolve(schema, encoders)
    manifest = describe(log, resolved, splits, labels, truths, stores, samples)
    if old is not None and (found := missing_past(log, stores, old.path, old.manifest)):
        manifest["warnings"] = found
    events = {kind: _event_columns(log, encoders, kind, store) for kind, store in stores.items()}
    return Prepared(
        schema=resolved,
        encoders=encoders,
        users=_attributes(log, encoders, "user"),
        items=_attributes(log, encoders, "item"),
        user_ids=log.users.ids,
        item_ids=log.items.ids,
        events=events,
        samples=samples,
        splits=splits,
        manifest=manifest,
    )


def _refuse_empty(log: Log, splits: dict[str, Int64], like: bool) -> None:
    """Training needs rows in every split, scoring (--like) in any."""
    empty = [k for k in SPLITS if not len(splits[k])]
    if not empty or (like and len(empty) < len(SPLITS)):
        return
    span = f"the log spans {iso(log.time.min())} to {iso(log.time.max())}"
    raise DataError(
        f"no impressions inside the split; {span}: move or drop split.start and split.end (with "
        "--like train and valid may be empty)"
        if like
        else f"no impressions in {empty[0]}; {span}: move split.valid, split.test or split.end",
        file=log.impressions.paths[0],
    )


def _order(log: Log, start: int, end: int) -> Int64:
    """Impressions of [start, end) in order of (time, source row)."""
    rows = np.flatnonzero((log.time >= start) & (log.time < end))
    return rows[np.argsort(log.time[rows], kind="stable")]


def _encode(log: Log, encoders: Encoders, name: str) -> dict[str, Encoded]:
    feature = log.schema.features[name]
    column = log.of(name, feature)
    with column.blame():
        return encoders.encode(name, feature, column.values, form=column.table.form)


def _ages(log: Log, encoders: Encoders, name: str) -> dict[str, Encoded]:
    """An age differs from request to request, so it belongs to the sample."""
    feature = log.schema.features[name]
    column = log.of(name, feature)
    with column.blame():
        since = times(column.values, *column.table.form)
    rows = log.rows(feature.role)
    inner = column.locate or (lambda row: row)
    at_request = Column(column.values, column.name, column.table, lambda r: inner(int(rows[r])))
    with at_request.blame():
        return encoders.encode_numbers(name, feature, age(since[rows], log.time))


def _attributes(log: Log, encoders: Encoders, role: str) -> Columns:
    found: Columns = {}
    for name, feature in log.schema.features.items():
        if feature.role == role and feature.kind != "counter" and feature.part != "age":
            found |= _prefixed(_encode(log, encoders, name))
    return found


def _event_columns(
    log: Log, encoders: Encoders, kind: str, store: EventTable
) -> tuple[dict[str, NDArray[Any]], Int64]:
    columns: dict[str, NDArray[Any]] = {"time": store.time, "item": store.item}
    seeded, scope = store.source < 0, f"{kind}/"
    for name, feature in log.schema.events[kind].features.items():
        column = event_store.own_column(log, kind, name, store)
        with column.blame():
            encoded = encoders.encode(
                name, feature, column.values, scope=scope, form=column.table.form
            )
        blank = encoders.encode_blank(name, feature, scope=scope) if seeded.any() else {}
        for key, values in encoded.items():
            assert isinstance(values, np.ndarray)
            filled = np.full(len(seeded), blank.get(key, 0), values.dtype)
            filled[~seeded] = values
            columns[f"feature.{key}"] = filled
    return columns, store.offsets


def _prefixed(encoded: dict[str, Encoded]) -> Columns:
    return {f"feature.{name}": values for name, values in encoded.items()}


def _resolve(schema: Schema, encoders: Encoders) -> Schema:
    """The same schema with every size filled in."""
    features = {
        name: dataclasses.replace(f, size=encoders.size(name, f))
        for name, f in schema.features.items()
    }
    events = {
        kind: dataclasses.replace(
            event,
            features={
                name: dataclasses.replace(f, size=encoders.size(name, f))
                for name, f in event.features.items()
            },
        )
        for kind, event in schema.events.items()
    }
    resolved = dataclasses.replace(schema, features=features, events=events)
    _ = resolved.table_sizes  # raises if features of one table disagree
    return resolved


def _write(prepared: Prepared, folder: Path) -> None:
    for name in ("encoders", "events", *(f"samples/{split}" for split in SPLITS)):
        (folder / name).mkdir(parents=True)
    write_yaml(folder / "schema.yaml", prepared.schema.to_dict())
    prepared.encoders.save(folder / "encoders")
    for name, ids, columns in (
        ("users", prepared.user_ids, prepared.users),
        ("items", prepared.item_ids, prepared.items),
    ):
        table = pa.table({"id": ids, **{k: to_arrow(v) for k, v in columns.items()}})
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
    for kind, (events, offsets) in prepared.events.items():
        event_store.write(folder / "events" / f"{kind}.arrow", events)
        event_store.write(folder / "events" / f"{kind}.offsets.arrow", {"offset": offsets})
    for split, rows in prepared.splits.items():
        for part, start in enumerate(range(0, len(rows), ROWS_PER_FILE)):
            chosen = rows[start : start + ROWS_PER_FILE]
            table = pa.table({k: to_arrow(v, chosen) for k, v in prepared.samples.items()})
            path = folder / "samples" / split / f"part-{part:05d}.parquet"
            pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd")
    (folder / "manifest.json").write_text(json.dumps(prepared.manifest, indent=2) + "\n")


def to_arrow(values: Encoded | NDArray[np.generic], rows: Int64 | None = None) -> pa.Array:
    """A column, or some of its rows, as Arrow; a Ragged becomes lists."""
    if isinstance(values, Ragged):
        kind = pa.large_list(pa.from_numpy_dtype(values.values.dtype))
        array = pa.LargeListArray.from_arrays(values.offsets, values.values).cast(kind)
        return array if rows is None else array.take(pa.array(rows))
    return pa.array(values if rows is None else values[rows])
