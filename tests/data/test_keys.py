"""Ids are the same values in every format: nothing merges, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kunlun.data.dataset import Dataset
from kunlun.data.prepare import prepare
from kunlun.data.values import BadValue, canonical
from kunlun.errors import DataError
from tests.data import logs

LEAN = ("item_id", "page", "position")


def lean(kind: str = "csv") -> tuple[logs.Logs, dict[str, Any]]:
    """Logs and a schema of impressions and events only; the impressions in that format."""
    raw, body = logs.random_logs(2), logs.schema()
    raw = {name: raw[name] for name in ("impressions", "events")}
    body["tables"] = {name: body["tables"][name] for name in raw}
    body["tables"]["impressions"]["files"] = f"impressions.{kind}"
    body["features"] = {name: body["features"][name] for name in LEAN}
    body["features"]["user_id"] = {"role": "user", "kind": "categorical"}
    body["events"] = {"view": {"max_len": 5, "item_features": ["item_id"]}}
    return raw, body


def write(folder: Path, raw: logs.Logs, body: dict[str, Any]) -> Path:
    """Every table as Parquet and as CSV."""
    logs.write(folder, raw, body, "csv")
    return logs.write(folder, raw, body)


def make(folder: Path, raw: logs.Logs, body: dict[str, Any], **options: Any) -> Dataset:
    prepare(write(folder / "raw", raw, body), folder / "data", **options)
    return Dataset.open(folder / "data")


def history(dataset: Dataset) -> float:
    return float(dataset.manifest["events"]["view"]["history"]["mean"])


def test_leading_zeros_of_a_csv_are_those_of_parquet(tmp_path: Path) -> None:
    raw, body = lean()
    number = make(tmp_path / "n", raw, body)
    for table in raw.values():
        table["user_id"] = [f"{user:03d}" for user in table["user_id"]]
    text = make(tmp_path / "t", raw, body)
    assert text.ids("users").to_pylist() == ["000", "001", "002", "003", "008", "009"]
    assert history(text) == history(number) > 0


def test_007_and_7_stay_two_users_of_a_csv(tmp_path: Path) -> None:
    raw, body = lean()
    raw["impressions"]["user_id"] = ["7", "007"] * 60
    ids = make(tmp_path, raw, body).ids("users").to_pylist()
    assert {"7", "007"} <= set(ids)


def test_unsigned_64_bit_ids_of_a_csv_are_whole(tmp_path: Path) -> None:
    raw, body = lean()
    for table in raw.values():
        table["user_id"] = [str(2**64 - 1 - user) for user in table["user_id"]]
    dataset = make(tmp_path, raw, body)
    assert dataset.manifest["users"] == 6
    assert str(2**64 - 1) in dataset.ids("users").to_pylist()
    assert history(dataset) > 0


def test_like_knows_a_column_that_looks_like_numbers_today(tmp_path: Path) -> None:
    raw, body = lean()
    body["features"]["flag"] = {"role": "context", "kind": "categorical"}
    zips = [f"{i % 9:05d}" for i in range(120)]
    raw["impressions"] |= {"page": ["AB12", *zips[1:]], "flag": ["unknown", *["true"] * 119]}
    old = make(tmp_path / "old", raw, body)
    raw["impressions"] |= {"page": zips, "flag": ["true"] * 120}
    new = make(tmp_path / "new", raw, body, like=old.path)
    for name in ("page", "flag"):
        assert not (new.column("test", f"feature.{name}") == 1).any()


def test_parts_of_one_csv_may_look_different(tmp_path: Path) -> None:
    raw, body = lean()
    body["tables"]["impressions"]["files"] = ["a/impressions.csv", "b/impressions.csv"]
    path = write(tmp_path / "raw", raw, body)
    for name, part, letter in (("a", slice(0, 60), ""), ("b", slice(60, None), "u")):
        rows = {k: v[part] for k, v in raw["impressions"].items()}
        rows["user_id"] = [f"{letter}{user}" for user in rows["user_id"]]
        write(tmp_path / "raw" / name, {"impressions": rows}, body)
    prepare(path, tmp_path / "data")
    ids = Dataset.open(tmp_path / "data").ids("users").to_pylist()
    assert {"9", "u9"} <= set(ids)


def test_every_key_of_a_csv_is_text_until_it_round_trips(tmp_path: Path) -> None:
    """Multi, first, length, counter keys, the type of an event and the group, beside Parquet."""
    raw, body = lean()
    raw["events"]["type"] = [{"view": "01", "click": "1", "other": "2"}[t] for t in
                             raw["events"]["type"]]  # fmt: skip
    raw["impressions"] |= {
        "one": [f"0{i % 4}" for i in range(120)],
        "zone": [f"0{i % 3}" if i % 2 else str(i % 3) for i in range(120)],
        "session": [f"{i % 7:02d}" for i in range(120)],
    }
    body["tables"]["events"]["files"] = "events.csv"
    body["events"]["view"]["types"] = ["01"]
    body["features"] |= {
        "some": {"role": "context", "kind": "multi", "column": "one", "separator": ","},
        "first": {"role": "context", "kind": "categorical", "column": "one", "part": "first",
                  "separator": ","},
        "n": {"role": "context", "kind": "numeric", "column": "one", "part": "length",
              "separator": ","},
        "zone_ctr": {"role": "context", "kind": "counter", "keys": ["zone"], "label": "click"},
    }  # fmt: skip
    text = make(tmp_path / "csv", raw, body)
    for table in ("impressions", "events"):
        body["tables"][table]["files"] = f"{table}.parquet"
    typed = make(tmp_path / "parquet", raw, body)
    assert text.manifest["tables"] == typed.manifest["tables"]
    assert text.manifest["events"] == typed.manifest["events"]
    assert history(text) > 0
    for name in ("feature.n", "feature.zone_ctr.count", "group"):
        assert np.array_equal(text.column("train", name), typed.column("train", name)), name


ROUND = [
    (["7", "-3", None], [7, -3, None], pa.int64()),
    (["7", "007"], ["7", "007"], pa.large_string()),
    (["7", "-0"], ["7", "-0"], pa.large_string()),
    (["7", " 8"], ["7", " 8"], pa.large_string()),
    (["7", "8.0"], ["7", "8.0"], pa.large_string()),
    ([str(2**63 - 1), str(-(2**63))], [2**63 - 1, -(2**63)], pa.int64()),
    ([str(2**63)], [str(2**63)], pa.large_string()),
]


@pytest.mark.parametrize(("values", "expected", "kind"), ROUND, ids=str)
def test_text_becomes_int64_if_every_value_round_trips(
    values: list[Any], expected: list[Any], kind: pa.DataType
) -> None:
    keys = canonical(pa.array(values))
    assert (keys.to_pylist(), keys.type) == (expected, kind)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1.0, None, 2.0**53]),
        pa.array([0.5, 1.0, -(2.0**60)]),
        pa.array([1, 2, 2**24], pa.float32()),
    ],
    ids=["whole", "mixed", "float32"],
)
def test_floats_that_lost_digits_are_no_ids(array: pa.Array) -> None:
    with pytest.raises(
        BadValue, match=r"row 2: .*ids stored as floats have lost digits; store"
    ) as found:
        canonical(array)
    assert found.value.row == 2


def test_float_ids_name_file_and_column(tmp_path: Path) -> None:
    raw, body = lean("parquet")
    raw["impressions"]["user_id"] = [2.0**60 + user for user in raw["impressions"]["user_id"]]
    with pytest.raises(
        DataError, match=r"impressions\.parquet, column 'user_id', row 0: found 1\.1"
    ):
        make(tmp_path, raw, body)
