"""Arrow columns -> the raw meanings a feature can have: a key, a number (a time: times.py).

Everything here works alike on a column of the logs and on the few values of a serving request.
Errors are BadValues with a row; the reader of the table adds file and column.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kunlun.errors import DataError

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Float64 = NDArray[np.float64]

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NO_TIME = np.iinfo(np.int64).min


class BadValue(DataError):
    """A value that cannot be read; `row` counts within the column at hand."""

    def __init__(self, reason: str, *, row: int | None = None) -> None:
        super().__init__(reason, row=row)
        self.reason = reason


class Ragged(NamedTuple):
    """n lists packed end to end: values [L] of any type, offsets int64 [n + 1]."""

    values: NDArray[np.generic]
    offsets: Int64


def is_list(array: pa.Array) -> bool:
    """Whether each value is a list."""
    kind = array.type
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_text(array: pa.Array) -> bool:
    """Whether each value is a string."""
    return bool(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))


def canonical(array: pa.Array) -> pa.Array:
    """Keys in one of two types, so that Parquet, CSV and JSON agree: int64, else large_string.

    Booleans, floats that are all whole, and text that is all spelt as int64 itself spells it
    ("7", never "007") become int64; what does not fit it becomes text. Null, NaN and "" are null.
    Raises BadValue for lists and for floats too large to tell neighbouring integers apart.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return canonical(array.dictionary_decode())
    if is_list(array):
        raise BadValue(
            "lists where single values were expected; use kind 'multi', or part 'first' or 'length'"
        )
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.int64())
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
        _refuse_lost_digits(array)
        whole = pc.all(pc.and_(pc.is_finite(array), pc.equal(pc.floor(array), array))).as_py()
        return array.cast(pa.large_string() if whole is False else pa.int64())
    huge = pa.types.is_uint64(kind) and (pc.max(array).as_py() or 0) >= 2**63
    if (pa.types.is_integer(kind) or pa.types.is_boolean(kind)) and not huge:
        return array.cast(pa.int64())
    try:
        text = array.cast(pa.large_string())
    except pa.ArrowInvalid:
        raise BadValue(
            f"bytes that are not UTF-8 text (type {kind}); store ids as integers or text"
        ) from None
    except pa.ArrowException:
        raise BadValue(f"values of type {kind}; expected integers or text") from None
    return _integers(pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text))


def _integers(text: pa.Array) -> pa.Array:
    """int64 if every value has the one spelling that its integer has, else the text as it is."""
    if pc.all(pc.match_substring_regex(text, "^(0|-?[1-9][0-9]{0,18})$")).as_py() is False:
        return text
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits
        return text


def _refuse_lost_digits(array: pa.Array) -> None:
    digits = {16: 11, 32: 24, 64: 53}[array.type.bit_width]
    large = pc.and_(pc.is_finite(array), pc.greater_equal(pc.abs(array), 2.0**digits))
    if pc.any(large).as_py():
        row = pc.index(large, True).as_py()
        raise BadValue(
            f"found {array[row].as_py():.17g} of type {array.type}; ids stored as floats have lost "
            "digits; store int64 or text",
            row=row,
        )


def factorise(keys: pa.Array) -> tuple[Int32, pa.Array]:
    """Canonical keys -> (int32 code of each, -1 for null; the distinct values)."""
    encoded = keys.dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary


def lists(array: pa.Array, separator: str | None) -> tuple[pa.Array, Int64]:
    """A list column, or text split by `separator`, as (all elements, int64 offsets [n + 1]).

    Null lists are empty. Raises BadValue for a column of another type.
    """
    if pa.types.is_null(array.type):
        return pa.nulls(0, pa.int64()), np.zeros(len(array) + 1, np.int64)
    if not is_list(array):
        if separator is None or not is_text(array):
            need = "a list column" if separator is None else "text or a list column"
            raise BadValue(f"values of type {array.type}; expected {need}")
        array = pc.split_pattern(_text(array), separator)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = array.flatten()  # null lists are skipped
    return pc.utf8_trim_whitespace(values) if is_text(values) else values, offsets


def first(array: pa.Array, separator: str | None) -> pa.Array:
    """The first element of each list, null where there is none."""
    values, offsets = lists(array, separator)
    index = pa.array(offsets[:-1], mask=offsets[:-1] == offsets[1:])
    return values.take(index)


def length(array: pa.Array, separator: str | None) -> Float64:
    """Number of elements of each list, NaN where the list itself is null."""
    _, offsets = lists(array, separator)
    found = np.diff(offsets).astype(np.float64)
    known = _text(array) if is_text(array) else array
    found[known.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return found


def numbers(array: pa.Array) -> Float64:
    """float64 [n], NaN for null. Text is parsed; raises BadValue at the first that is no number."""
    if is_list(array):
        raise BadValue("lists where numbers were expected; use part 'length' or kind 'multi'")
    if is_text(array):
        array = _parse(array)
    try:
        array = array.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise BadValue(f"values of type {array.type}; expected numbers") from None
    found: Float64 = pc.fill_null(array, float("nan")).to_numpy(zero_copy_only=False)
    return found


def _text(array: pa.Array) -> pa.Array:
    """Trimmed; empty text is null, as in CSV, which knows no difference."""
    text = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


def _parse(text: pa.Array) -> pa.Array:
    text = _text(text)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        for row, value in enumerate(text.to_pylist()):
            try:
                float(value or 0)
            except ValueError:
                raise BadValue(
                    f"found text '{value}', expected a number; clean the column or make it "
                    "kind 'categorical'",
                    row=row,
                ) from None
        raise
