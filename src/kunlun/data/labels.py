"""Labels, true probabilities, weights, groups and the split of the impressions."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kunlun.data.source import Log
from kunlun.data.values import BadValue, Float64, Int64, canonical, numbers
from kunlun.data.vocabulary import hash64
from kunlun.errors import SchemaError
from kunlun.features.schema import Split

SPLITS = ("train", "valid", "test")
Bools = NDArray[np.bool_]


def read_labels(log: Log) -> dict[str, Float64]:
    """float64 [N] a label: 0, 1 or NaN (unknown, or its `given` label is not 1).

    A column that is absent (allowed when scoring) is NaN throughout. Raises DataError at the first
    value outside {0, 1, null}.
    """
    found = {}
    for name, label in log.schema.labels.items():
        column = label.column or name
        if not log.impressions.has(column):
            found[name] = np.full(len(log.time), np.nan)
            continue
        with log.impressions.blame(column):
            x = numbers(log.impressions.column(column))
            bad = ~(np.isnan(x) | (x == 0) | (x == 1))
            if bad.any():
                row = int(np.argmax(bad))
                raise BadValue(
                    f"found {x[row]:g}, expected 0, 1 or null in label '{name}'; clean the column",
                    row=row,
                )
        found[name] = x
    labels = log.schema.labels

    def depth(name: str) -> int:
        given = labels[name].given
        return 0 if given is None else 1 + depth(given)

    for name in sorted(labels, key=depth):  # a condition before what depends on it
        given = labels[name].given
        if given is not None:
            found[name] = np.where(found[given] == 1, found[name], np.nan)
    return found


def read_truths(log: Log) -> dict[str, Float64]:
    """float64 [N] true probability of each label that has one."""
    found = {}
    for name, label in log.schema.labels.items():
        if label.truth is not None and log.impressions.has(label.truth):
            with log.impressions.blame(label.truth):
                x = numbers(log.impressions.column(label.truth))
                bad = (x < 0) | (x > 1)
                if bad.any():
                    row = int(np.argmax(bad))
                    raise BadValue(f"found {x[row]:g}, expected a probability", row=row)
            found[name] = x
    return found


def read_weights(log: Log) -> NDArray[np.float32]:
    """float32 [N], 1 without a weight column (it may be absent when scoring)."""
    if log.schema.weight is None or not log.impressions.has(log.schema.weight):
        return np.ones(len(log.time), np.float32)
    with log.impressions.blame(log.schema.weight):
        x = numbers(log.impressions.column(log.schema.weight))
        bad = ~np.isfinite(x) | (x < 0)
        if bad.any():
            row = int(np.argmax(bad))
            raise BadValue(f"found {x[row]:g}, expected a weight of at least 0", row=row)
    return x.astype(np.float32)


def read_groups(log: Log) -> Int64:
    """int64 [N], the key of GAUC: an integer column as it is, text by hash64; default: user row.

    Raises DataError at the first null: rows of unknown groups are not one group.
    """
    if log.schema.group is None:
        return log.user.astype(np.int64)
    with log.impressions.blame(log.schema.group):
        keys = canonical(log.impressions.column(log.schema.group))
        if keys.null_count:
            row = pc.index(keys.is_null(), True).as_py()
            raise BadValue(
                "found null, expected a group; fill it in, or drop `group` to group by user",
                row=row,
            )
        if pa.types.is_int64(keys.type):
            found: Int64 = keys.to_numpy(zero_copy_only=False)
            return found
        return hash64(keys).view(np.int64)


def bounds(split: Split) -> dict[str, tuple[int, int]]:
    """Split -> [first, end) in ms. Raises SchemaError for a time without zone or out of order."""
    far = 2**62
    start, end = _moment(split.start, "start", -far), _moment(split.end, "end", far)
    valid, test = _moment(split.valid, "valid"), _moment(split.test, "test")
    if not start <= valid <= test <= end:
        raise SchemaError(
            f"split: start {split.start}, valid {split.valid}, test {split.test}, end {split.end} "
            "must come in this order"
        )
    return {"train": (start, valid), "valid": (valid, test), "test": (test, end)}


def _moment(text: str | None, key: str, default: int = 0) -> int:
    if text is None:
        return default
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SchemaError(
            f"split.{key}: '{text}' is not an ISO time such as 2022-05-03T00:00:00+08:00"
        ) from None
    if moment.tzinfo is None:
        raise SchemaError(f"split.{key}: '{text}' has no zone; add one, such as +08:00 or Z")
    return round(moment.timestamp() * 1000)
