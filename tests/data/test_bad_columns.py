"""Columns that cannot be read as what the schema says, and those that could be two things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from kunlun.data.prepare import prepare
from kunlun.errors import DataError, SchemaError
from tests.data import logs


def refused(tmp_path: Path, kind: type[Exception], message: str, raw: Any, body: Any) -> None:
    path = logs.write(tmp_path / "raw", raw, body)
    with pytest.raises(kind, match=message) as caught:
        prepare(path, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("empty", [None, ""])
def test_a_group_is_known(tmp_path: Path, empty: Any) -> None:
    raw = logs.random_logs(1)
    raw["impressions"]["session"] = [str(s) for s in raw["impressions"]["session"]]
    raw["impressions"]["session"][7] = empty
    refused(
        tmp_path,
        DataError,
        r"impressions\.parquet, column 'session', row 7: found null, expected a group; fill it in",
        raw,
        logs.schema(),
    )


def test_a_required_list_is_not_empty(tmp_path: Path) -> None:
    body = logs.schema()
    body["features"]["tags"]["missing"] = "error"
    refused(
        tmp_path,
        DataError,
        r"items\.parquet, column 'tags', row 2: found null, expected a value for 'tags'; say",
        logs.random_logs(1),
        body,
    )


def test_a_column_of_two_tables_is_ambiguous(tmp_path: Path) -> None:
    raw, body = logs.random_logs(1), logs.schema()
    body["tables"]["users"].append({"files": "more.parquet", "key": "user_id", "utc_offset": 0})
    raw["more"] = {name: raw["users"][name] for name in ("user_id", "country")}
    refused(
        tmp_path,
        SchemaError,
        r"features\.country\.column: 'country' is in both .*users\.parquet and .*more\.parquet; "
        "rename it in one of them",
        raw,
        body,
    )


COLUMNS = {
    "binary": (pa.array([b"\xff%d" % (i % 9) for i in range(120)]), "bytes that are not UTF-8"),
    "struct": (pa.array([{"a": 1}] * 120), "values of type struct<a: int64>; expected integers or"),
}
PLACES = {
    "user": lambda body: body["tables"]["impressions"].update(user="odd"),
    "categorical": lambda body: body["features"]["page"].update(column="odd"),
    "counter key": lambda body: body["features"]["user_ctr"].update(keys=["odd"]),
    "group": lambda body: body.update(group="odd"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("column", COLUMNS)
def test_keys_of_odd_types(tmp_path: Path, place: str, column: str) -> None:
    raw, body = logs.random_logs(1), logs.schema()
    values, message = COLUMNS[column]
    raw["impressions"]["odd"] = values  # type: ignore[assignment]
    PLACES[place](body)
    refused(tmp_path, DataError, rf"impressions\.parquet, column 'odd': {message}", raw, body)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("place", ["position", "time", "click"])
def test_numbers_and_times_of_odd_types(tmp_path: Path, place: str, column: str) -> None:
    raw, body = logs.random_logs(1), logs.schema()
    raw["impressions"][place] = COLUMNS[column][0]  # type: ignore[assignment]
    refused(tmp_path, DataError, rf"impressions\.parquet, column '{place}'.*: ", raw, body)


@pytest.mark.parametrize("column", ["page", "position", "time"])
def test_latin_1_in_a_csv(tmp_path: Path, column: str) -> None:
    raw, body = logs.random_logs(1), logs.schema()
    raw["impressions"][column] = [f"é{i % 3}" for i in range(120)]
    body["tables"]["impressions"]["files"] = "impressions.csv"
    logs.write(tmp_path / "raw", {"impressions": raw["impressions"]}, body, "csv")
    file = tmp_path / "raw" / "impressions.csv"
    file.write_bytes(file.read_text("utf-8").encode("latin-1"))
    refused(tmp_path, DataError, rf"impressions\.csv.*{column}.*UTF-?8", raw, body)


def test_a_latin_1_header_of_a_csv(tmp_path: Path) -> None:
    raw, body = logs.random_logs(1), logs.schema()
    raw["impressions"]["größe"] = [1] * 120
    body["tables"]["impressions"]["files"] = "impressions.csv"
    logs.write(tmp_path / "raw", {"impressions": raw["impressions"]}, body, "csv")
    file = tmp_path / "raw" / "impressions.csv"
    file.write_bytes(file.read_text("utf-8").encode("latin-1"))
    refused(tmp_path, DataError, r"impressions\.csv: cannot be read", raw, body)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_occurs_twice(tmp_path: Path, kind: str) -> None:
    body = logs.schema()
    body["tables"]["impressions"]["files"] = f"impressions.{kind}"
    path = logs.write(tmp_path, logs.random_logs(1), body)
    table = pq.read_table(tmp_path / "impressions.parquet")
    table = table.append_column("click", table["click"])
    pq.write_table(table, tmp_path / "impressions.parquet")
    csv.write_csv(table, tmp_path / "impressions.csv")
    with pytest.raises(
        SchemaError, match=r"labels\.click\.column: column 'click' occurs 2 times in .*impressions"
    ):
        prepare(path, tmp_path / "data")
