"""List-column histories: a user's items, oldest first, as events of a type."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kunlun.data.entities import Column
from kunlun.data.times import TimeForm, require_times, times
from kunlun.data.values import BadValue, Int32, Int64, canonical, is_list, lists
from kunlun.features.schema import ListHistory


def list_events(spec: ListHistory, column: Column, when: Column) -> tuple[Int32, pa.Array, Int64]:
    """List histories as events: user rows [n], canonical item keys [n], times [n], oldest first.

    column, when: one value a user. Null items are dropped; a null or empty list has no events.
    Raises DataError with the row: no time, a wrong unit, times that go back.
    """
    with column.blame():
        values, offsets = lists(column.values, None)
        keys = canonical(values)
    lengths = np.diff(offsets)
    form = when.table.form._replace(unit=spec.time_unit)
    with when.blame():
        if is_list(when.values):
            at = _list_times(when.values, lengths, spec, form)
        else:
            latest = times(when.values, *form)
            require_times(np.where(lengths > 0, latest, 0))
            at = np.repeat(latest, lengths)
    known = keys.is_valid().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return rows[known], keys.drop_null(), at[known]


def _list_times(array: pa.Array, lengths: Int64, spec: ListHistory, form: TimeForm) -> Int64:
    """One time for each element, checked against its list of items."""
    values, offsets = lists(array, None)
    owner = np.repeat(np.arange(len(lengths)), np.diff(offsets))
    if (np.diff(offsets) != lengths).any():
        row = int(np.argmax(np.diff(offsets) != lengths))
        raise BadValue(
            f"{offsets[row + 1] - offsets[row]} times for the {lengths[row]} items of "
            f"'{spec.column}'; expected one each",
            row=row,
        )
    try:
        at = require_times(times(values, *form))
    except BadValue as error:
        inner = None if error.row is None else int(owner[error.row])
        raise BadValue(f"{error.reason} (inside a list)", row=inner) from None
    late = (np.diff(at) < 0) & (np.diff(owner) == 0)
    if late.any():
        spot = int(np.argmax(late))
        raise BadValue(
            f"times go back from {at[spot]} to {at[spot + 1]} ms; expected oldest first: sort the "
            "lists",
            row=int(owner[spot]),
        )
    return at
