"""Arrow columns -> times: int64 ms since 1970 UTC, whatever the spelling.

Numbers, and text that is all digits, are in the table's unit; dates, timestamps and ISO text say it
themselves, and without a zone they are local to the table's `utc_offset`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kunlun.data.values import HOUR_MS, NO_TIME, BadValue, Int64, is_list, is_text, numbers
from kunlun.features.schema import TimeUnit

EARLIEST, LATEST = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100: outside, a wrong unit
DIGITS = r"^-?[0-9]+(\.[0-9]+)?$"


class TimeForm(NamedTuple):
    """How a table writes its times: unit of numbers, hours ahead of UTC where there is no zone."""

    unit: TimeUnit = "ms"
    utc_offset: float = 0.0


def times(array: pa.Array, unit: TimeUnit, utc_offset: float = 0.0) -> Int64:
    """int64 ms since 1970 UTC, NO_TIME for null.

    unit and utc_offset: see TimeForm. Raises BadValue for text that is no time and for times
    outside 1990-2100, which mean a wrong unit.
    """
    if is_text(array):
        array = _trimmed(array)
        if pc.all(pc.match_substring_regex(array, DIGITS)).as_py():
            whole = not pc.any(pc.match_substring(array, ".")).as_py()
            return _checked(_from_numbers(array.cast(pa.int64()) if whole else array, unit), unit)
        array, local = _parse_times(array)
        array = array.cast(pa.timestamp("ms", array.type.tz), safe=False)
    else:
        kind = array.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            local = pa.types.is_date(kind) or kind.tz is None
            array = array.cast(pa.timestamp("ms", None if local else "UTC"), safe=False)
        else:
            return _checked(_from_numbers(array, unit), unit)
    found = pc.fill_null(array.cast(pa.int64()), NO_TIME).to_numpy(zero_copy_only=False)
    if local and utc_offset:
        found = np.where(found == NO_TIME, NO_TIME, found - round(utc_offset * HOUR_MS))
    return _checked(found, None)


def _from_numbers(array: pa.Array, unit: TimeUnit) -> Int64:
    if pa.types.is_integer(array.type):
        array = array.cast(pa.int64())
        missing = array.is_null().to_numpy(zero_copy_only=False)
        found = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
        if unit == "s":
            # clipped, so that milliseconds given as seconds do not wrap around into a valid time
            found = np.clip(found, -(2**52), 2**52) * 1000
        elif unit == "us":
            found = found // 1000
    else:
        values = numbers(array) * {"s": 1e3, "ms": 1.0, "us": 1e-3}[unit]
        missing = np.isnan(values)
        found = np.clip(np.nan_to_num(np.floor(values)), -(2.0**62), 2.0**62).astype(np.int64)
    return np.where(missing, NO_TIME, found)


def has_zone(array: pa.Array) -> bool | None:
    """Whether a column of times (or lists of them) says its zone, as numbers do; None if it holds
    nothing that is a time."""
    if is_list(array):
        array = array.flatten()
    if array.null_count == len(array):
        return None
    if pa.types.is_date(array.type):
        return False
    if pa.types.is_timestamp(array.type):
        return array.type.tz is not None
    if not is_text(array):
        return True
    text = _trimmed(array).drop_null()
    if not len(text):
        return None
    if pc.match_substring_regex(text[:1], DIGITS)[0].as_py():
        return True
    try:
        return datetime.fromisoformat(text[0].as_py()).tzinfo is not None
    except ValueError:
        return None


def _trimmed(text: pa.Array) -> pa.Array:
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


def _parse_times(text: pa.Array) -> tuple[pa.Array, bool]:
    """ISO text -> timestamps, and whether they are local."""
    for zone in (None, "UTC"):
        for unit in ("us", "ns"):
            try:
                return text.cast(pa.timestamp(unit, zone)), zone is None
            except pa.ArrowInvalid:
                pass
    return _parse_slowly(text)


def _parse_slowly(text: pa.Array) -> tuple[pa.Array, bool]:
    """The ISO spellings that Arrow does not know; raises BadValue if it is none of them either."""
    found: list[datetime | None] = []
    first: tuple[str, bool] | None = None
    for row, value in enumerate(text.to_pylist()):
        try:
            moment = None if value is None else datetime.fromisoformat(value)
        except ValueError:
            raise BadValue(
                f"found '{value}', expected an ISO time such as 2022-05-03T10:00:00+08:00 or a "
                "number",
                row=row,
            ) from None
        found.append(moment)
        if moment is None:
            continue
        local = moment.tzinfo is None
        first = first or (value, local)
        if local != first[1]:
            what = ("without", "with") if local else ("with", "without")
            raise BadValue(
                f"found '{value}', {what[0]} a zone, after '{first[0]}' {what[1]}; use one form",
                row=row,
            )
    local = first is None or first[1]
    return pa.array(found, pa.timestamp("us", None if local else "UTC")), local


def _checked(found: Int64, unit: str | None) -> Int64:
    bad = (found != NO_TIME) & ((found < EARLIEST) | (found > LATEST))
    if bad.any():
        row = int(np.argmax(bad))
        value = int(found[row])
        hint = f"; is time_unit '{unit}' right (s, ms, us)?" if unit else ""
        raise BadValue(
            f"found a time in {_year(value)} ({value} ms), expected 1990 to 2100{hint}", row=row
        )
    return found


def _year(ms: int) -> str:
    if abs(ms) < 250_000_000_000_000:
        return f"the year {datetime.fromtimestamp(ms / 1000, UTC).year}" if ms >= 0 else "the past"
    return "a far year"


def require_times(found: Int64) -> Int64:
    """The same times; raises BadValue at the first null."""
    if (found == NO_TIME).any():
        raise BadValue("found null, expected a time", row=int(np.argmax(found == NO_TIME)))
    return found
