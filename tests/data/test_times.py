"""Times: one instant whatever its spelling, and no guessing of zones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kunlun.data.dataset import Dataset
from kunlun.data.prepare import prepare
from kunlun.data.times import times
from kunlun.data.values import BadValue
from kunlun.errors import SchemaError
from tests.data import logs
from tests.data.test_point_in_time import SPLITS, equal, whole_split

EAST = timezone(timedelta(hours=8))


def naive(ms: int, zone: timezone = UTC) -> str:  # type: ignore[assignment]
    """The wall clock of a zone, without saying which."""
    return datetime.fromtimestamp(ms / 1000, zone).replace(tzinfo=None).isoformat()


def clocks() -> dict[str, Any]:
    """A schema with an hour of the impression at +8 and one of its column `at`."""
    body = logs.schema()
    body["features"]["hour"]["utc_offset"] = 8
    body["events"]["view"]["features"]["when"] = {
        "role": "event", "kind": "timestamp", "part": "hour", "utc_offset": 8, "missing": "token",
    }  # fmt: skip
    return body


def make(folder: Path, raw: logs.Logs, body: dict[str, Any]) -> Dataset:
    prepare(logs.write(folder / "raw", raw, body), folder / "data")
    return Dataset.open(folder / "data")


@pytest.mark.parametrize("table", ["impressions", "events"])
def test_local_times_of_a_table_with_an_offset_are_the_same_instants(
    tmp_path: Path, table: str
) -> None:
    raw, body = logs.random_logs(4), clocks()
    expected = make(tmp_path / "ms", raw, body)
    raw[table]["time"] = [naive(t, EAST) for t in raw[table]["time"]]
    body["tables"][table]["utc_offset"] = 8
    found = make(tmp_path / "local", raw, body)
    for split in SPLITS:
        assert equal(whole_split(found, split)[1], whole_split(expected, split)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: raw["impressions"].update(
                time=[naive(t) for t in raw["impressions"]["time"]]
            ),
            r"tables\.impressions\.utc_offset is missing: times of 'time' have no zone, unlike "
            r"'time' of tables\.events; say how many hours they are ahead of UTC \(0: UTC\)",
        ),
        (
            lambda raw: raw["events"].update(time=[naive(t) for t in raw["events"]["time"]]),
            r"tables\.events\.utc_offset is missing: times of 'time' have no zone, unlike 'time' "
            r"of tables\.impressions",
        ),
        (
            lambda raw: raw["users"].update(
                seen_time=[t and naive(t) for t in raw["users"]["seen_time"]]
            ),
            r"tables\.users\[0\]\.utc_offset is missing: times of '(joined|seen_time)' have no ",
        ),
    ],
    ids=["impressions", "events", "lists"],
)
def test_times_without_zone_beside_times_with_one_need_an_offset(
    tmp_path: Path, change: Any, message: str
) -> None:
    raw, body = logs.random_logs(4), logs.schema()
    del body["tables"]["users"][0]["utc_offset"]
    if "users" not in message:
        del body["features"]["tenure"]
    change(raw)
    with pytest.raises(SchemaError, match=message):
        prepare(logs.write(tmp_path / "raw", raw, body), tmp_path / "data")


def test_logs_that_are_all_without_zone_are_utc(tmp_path: Path) -> None:
    raw, body = logs.random_logs(4), clocks()
    expected = make(tmp_path / "ms", raw, body)
    for table in ("impressions", "events"):
        raw[table]["time"] = [naive(t) for t in raw[table]["time"]]
    raw["users"]["seen_time"] = [t and naive(t) for t in raw["users"]["seen_time"]]
    del body["tables"]["users"][0]["utc_offset"]
    found = make(tmp_path / "naive", raw, body)
    for split in SPLITS:
        assert equal(whole_split(found, split)[1], whole_split(expected, split)[1])
    body["tables"]["events"]["utc_offset"] = 0  # now the others must say so as well
    with pytest.raises(SchemaError, match=r"tables\.impressions\.utc_offset is missing"):
        make(tmp_path / "half", raw, body)


def test_the_offset_of_a_table_moves_ages(tmp_path: Path) -> None:
    raw, body = logs.random_logs(4), logs.schema()
    utc = make(tmp_path / "utc", raw, body)
    body["tables"]["users"][0]["utc_offset"] = 8
    raw["users"]["seen_time"] = [t and logs.iso(t) for t in raw["users"]["seen_time"]]
    east = make(tmp_path / "east", raw, body)
    a, b = (d.column("test", "feature.tenure") for d in (utc, east))
    assert not np.array_equal(a, b)
    assert equal(whole_split(utc, "test")[1].events, whole_split(east, "test")[1].events)


def test_an_age_has_no_clock(tmp_path: Path) -> None:
    body = logs.schema()
    body["features"]["tenure"]["utc_offset"] = 8
    path = logs.write(tmp_path / "raw", logs.random_logs(4), body)
    with pytest.raises(
        SchemaError, match=r"features\.tenure\.utc_offset: an age has no clock; set utc_offset of "
        r"the table instead",
    ):  # fmt: skip
        prepare(path, tmp_path / "data")


SPELLINGS = [
    ("2023-11-14T22:13:20.123456", 1_700_000_000_123),
    ("2023-11-14 22:13:20.123456+00:00", 1_700_000_000_123),
    ("2023-11-15T06:13:20.123456789+08:00", 1_700_000_000_123),
    ("20231114T221320", 1_700_000_000_000),
    ("20231114T221320Z", 1_700_000_000_000),
    ("1700000000123", 1_700_000_000_123),
    (" 1700000000123.75 ", 1_700_000_000_123),
]


@pytest.mark.parametrize(("text", "expected"), SPELLINGS)
def test_spellings_of_an_instant(text: str, expected: int) -> None:
    assert times(pa.array([text, None, ""]), "ms").tolist()[0] == expected


def test_digits_are_in_the_unit_of_the_table() -> None:
    assert times(pa.array(["1700000000"]), "s").tolist() == [1_700_000_000_000]
    assert times(pa.array(["1700000000123999"], pa.large_string()), "us", 8).tolist() == [
        1_700_000_000_123
    ]
    with pytest.raises(
        BadValue, match=r"row 0: found a time in the year 1970.*time_unit 'ms' right"
    ):
        times(pa.array(["20231114"]), "ms")


def test_one_form_in_a_column() -> None:
    with pytest.raises(BadValue, match="row 1: found '2023-11-14T00:00:00Z', with a zone, after "):
        times(pa.array(["2023-11-14", "2023-11-14T00:00:00Z"]), "ms")
    with pytest.raises(BadValue, match="row 1: found 'soon', expected an ISO time"):
        times(pa.array(["2023-11-14", "soon"]), "ms")
    with pytest.raises(BadValue, match="row 1: found '5', expected an ISO time"):
        times(pa.array(["2023-11-14", "5"]), "ms")
