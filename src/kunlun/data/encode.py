"""The one encoding path of training and serving: raw columns -> what a model's inputs hold.

`Encoders` are fitted by `fit.py` on the training days and saved in a dataset directory's
`encoders/` (JSON, and Parquet for vocabularies), from where export copies them next to a model.
Names: an input of a sample is keyed by its name, an input of an event by "TYPE/name"; whatever
shares an embedding table shares one vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kunlun.data.numeric import Buckets, Scaler
from kunlun.data.times import TimeForm, times
from kunlun.data.values import (
    DAY_MS,
    HOUR_MS,
    NO_TIME,
    BadValue,
    Float64,
    Int32,
    Int64,
    Ragged,
    canonical,
    first,
    length,
    lists,
    numbers,
)
from kunlun.data.vocabulary import Hashing, Vocabulary
from kunlun.errors import DataError, SchemaError
from kunlun.features.schema import FIRST_VALUE, MISSING, Feature, Schema

Encoded = NDArray[np.int32] | NDArray[np.float32] | Ragged
HOURS, WEEKDAYS = 24, 7
FILE = "encoders.json"


def occurrences(schema: Schema) -> Iterator[tuple[str, str, Feature]]:
    """(scope, name, feature) of every feature; scope is "" or "TYPE/"."""
    for name, feature in schema.features.items():
        yield "", name, feature
    for kind, event in schema.events.items():
        for name, feature in event.features.items():
            yield f"{kind}/", name, feature


def is_keyed(feature: Feature) -> bool:
    """Whether ids come from a vocabulary or a hash."""
    return feature.kind in ("categorical", "multi")


def is_text(feature: Feature) -> bool:
    """Whether its raw column holds keys or lists of them, which a CSV must leave as text."""
    return is_keyed(feature) or feature.part == "length"


def is_clock(feature: Feature) -> bool:
    """Whether ids are hours or weekdays."""
    return feature.part in ("hour", "weekday")


def keys(feature: Feature, column: pa.Array) -> tuple[pa.Array, Int64 | None]:
    """Canonical keys of a categorical (offsets None) or multi (offsets int64 [n + 1]) column."""
    if feature.kind == "multi":
        values, offsets = lists(column, feature.separator)
        return canonical(values), offsets
    if feature.part == "first":
        return canonical(first(column, feature.separator)), None
    return canonical(column), None


def measure(
    feature: Feature,
    column: pa.Array,
    form: TimeForm = TimeForm(),  # noqa: B008, immutable
    request: Int64 | None = None,
) -> Float64:
    """The number behind a numeric or age feature, float64 [n], NaN where missing.

    request: int64 [n] ms of the requests, for ages; an age before its time is 0.
    """
    if feature.part == "length":
        return length(column, feature.separator)
    if feature.part == "age":
        return age(times(column, *form), request)
    return numbers(column)


def age(since: Int64, request: Int64 | None) -> Float64:
    """log1p of the seconds from `since` to `request` (int64 [n] ms), NaN where since is missing."""
    assert request is not None
    seconds = np.maximum(np.where(since == NO_TIME, request, request - since), 0) / 1000.0
    return np.where(since == NO_TIME, np.nan, np.log1p(seconds))


def clock(feature: Feature, at: Int64) -> Int32:
    """Hour or weekday (0 = Monday) of int64 [n] ms as int32 ids."""
    local = np.where(at == NO_TIME, 0, at) + round(feature.utc_offset * HOUR_MS)
    part = local // HOUR_MS % HOURS if feature.part == "hour" else (local // DAY_MS + 3) % WEEKDAYS
    return np.where(at == NO_TIME, MISSING, part + FIRST_VALUE).astype(np.int32)


@dataclass
class Encoders:
    """Everything fitted. tables: embedding table -> vocabulary or hash. numbers: input key ->
    scaling or buckets. priors: counter -> rate of its label in train."""

    tables: dict[str, Vocabulary | Hashing] = field(default_factory=dict)
    numbers: dict[str, Scaler | Buckets] = field(default_factory=dict)
    priors: dict[str, float] = field(default_factory=dict)

    def size(self, name: str, feature: Feature) -> int | None:
        """Ids of a feature including the reserved ones; None for a number."""
        if is_keyed(feature):
            return self.tables[feature.table or name].size
        if is_clock(feature):
            return (HOURS if feature.part == "hour" else WEEKDAYS) + FIRST_VALUE
        return feature.buckets + FIRST_VALUE if feature.buckets else None

    def encode(
        self,
        name: str,
        feature: Feature,
        column: pa.Array,
        *,
        scope: str = "",
        form: TimeForm = TimeForm(),  # noqa: B008, immutable
        request: Int64 | None = None,
    ) -> dict[str, Encoded]:
        """One raw column -> the inputs of its feature, by input name (Schema.inputs).

        Args:
            column: Arrow array [n], as read from the logs or made from a request's values.
            scope: "TYPE/" for an event's own feature.
            form: of the column's times. request: int64 [n] ms, needed by ages.
        Returns: int32 ids [n], float32 [n], or for multi a Ragged of the last max_len ids.
        Raises: BadValue with row for a value of the wrong kind or an undeclared missing one.
        """
        if is_keyed(feature):
            found, offsets = keys(feature, column)
            ids = self.tables[feature.table or name].encode(found)
            if offsets is not None:
                tails = _tail(ids, offsets, feature.max_len)
                _refuse_missing(name, feature, np.diff(tails.offsets) == 0)
                return {name: tails}
            _refuse_missing(name, feature, ids == MISSING)
            return {name: ids}
        if is_clock(feature):
            ids = clock(feature, times(column, *form))
            _refuse_missing(name, feature, ids == MISSING)
            return {name: ids}
        return self.encode_numbers(name, feature, measure(feature, column, form, request), scope)

    def encode_numbers(
        self, name: str, feature: Feature, x: Float64, scope: str = ""
    ) -> dict[str, Encoded]:
        """float64 [n] of one numeric input (a counter has two: name.rate, name.count) -> inputs."""
        absent = ~np.isfinite(x)
        _refuse_missing(name, feature, absent, x)
        if feature.missing == "value":
            x = np.where(absent, feature.fill, x)
        result: dict[str, Encoded] = {name: self.numbers[scope + name].encode(x)}
        if feature.missing == "token" and not feature.buckets:
            result[f"{name}.missing"] = absent.astype(np.float32)
        return result

    def encode_blank(self, name: str, feature: Feature, *, scope: str = "") -> dict[str, Encoded]:
        """Inputs of one event that has no value, as an item of a list history has none.

        Raises SchemaError if the feature does not declare what a missing value means.
        """
        try:
            return self.encode(name, feature, pa.nulls(1), scope=scope)
        except BadValue:
            raise SchemaError(
                f"events.{scope}features.{name}: items of list histories have no value; set "
                "missing: token or value".replace("/", ".", 1)
            ) from None

    def save(self, folder: Path) -> None:
        """Write encoders.json and one Parquet file per vocabulary; the folder must exist."""
        body: dict[str, Any] = {"tables": {}, "numbers": {}, "priors": self.priors}
        for table, coder in self.tables.items():
            if isinstance(coder, Vocabulary):
                file = f"{quote(table, safe='')}.parquet"
                pq.write_table(pa.table({"value": coder.values}), folder / file)
                body["tables"][table] = {"vocabulary": file}
            else:
                body["tables"][table] = {"hash": dataclasses.asdict(coder)}
        for name, number in self.numbers.items():
            kind = "buckets" if isinstance(number, Buckets) else "scaler"
            body["numbers"][name] = {kind: dataclasses.asdict(number)}
        (folder / FILE).write_text(json.dumps(body, indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> Encoders:
        """Inverse of save. Raises DataError if something is missing or torn."""
        try:
            body = json.loads((folder / FILE).read_text())
            found = Encoders(priors=body["priors"])
            for table, entry in body["tables"].items():
                if "vocabulary" in entry:
                    values = pq.read_table(folder / entry["vocabulary"])["value"].combine_chunks()
                    if isinstance(values, pa.ChunkedArray):
                        values = pa.concat_arrays(values.chunks)
                    found.tables[table] = Vocabulary(values)
                else:
                    found.tables[table] = Hashing(**entry["hash"])
            for name, entry in body["numbers"].items():
                found.numbers[name] = (
                    Buckets(**entry["buckets"]) if "buckets" in entry else Scaler(**entry["scaler"])
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"encoders cannot be read ({error.__class__.__name__}); prepare the data again",
                file=folder,
            ) from None
        return found


def _refuse_missing(
    name: str, feature: Feature, absent: NDArray[np.bool_], x: Float64 | None = None
) -> None:
    number = x is not None and not (feature.kind == "timestamp" and feature.buckets)
    if feature.missing not in (None, "error") or (feature.missing is None and not number):
        return
    if absent.any():
        row = int(np.argmax(absent))
        came = "infinity" if x is not None and np.isinf(x[row]) else "null"
        options = "token, or value with fill" if number else "token"
        raise BadValue(
            f"found {came}, expected a value for '{name}'; say what it means with missing: "
            f"{options}",
            row=row,
        )


def _tail(ids: Int32, offsets: Int64, max_len: int) -> Ragged:
    """The last max_len known ids of each list; nulls inside lists are dropped."""
    if (ids == MISSING).any():
        kept = np.concatenate([[0], np.cumsum(ids != MISSING)])
        ids, offsets = ids[ids != MISSING], kept[offsets]
    lengths = np.minimum(np.diff(offsets), max_len)
    short = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(ids[ranges(offsets[1:] - lengths, lengths)], short)


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """starts[0], starts[0] + 1, .. lengths[0] of them, then the next: int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    shift = starts - (ends - lengths)
    return np.repeat(shift, lengths) + np.arange(ends[-1] if len(ends) else 0)
