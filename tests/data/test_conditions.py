"""Conditional labels in any order, and event features that belong to one type of events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kunlun.data.dataset import Dataset
from kunlun.data.encode import Encoders
from kunlun.data.prepare import prepare
from kunlun.errors import DataError
from tests.data import logs
from tests.data.test_point_in_time import SPLITS, equal, whole_split


def make(folder: Path, raw: logs.Logs, body: dict[str, Any]) -> Dataset:
    prepare(logs.write(folder / "raw", raw, body), folder / "data")
    return Dataset.open(folder / "data")


@pytest.mark.parametrize("order", [("click", "cart", "buy"), ("buy", "cart", "click")])
def test_a_condition_holds_through_its_own_condition(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    raw, body = logs.random_logs(2), logs.schema()
    raw["impressions"] |= {"cart": [1] * 120, "buy": [0] * 120}
    labels = {"click": {}, "cart": {"given": "click"}, "buy": {"given": "cart"}}
    body["labels"] = {name: labels[name] for name in order}
    for name in ("brand_page", "user_ctr"):
        del body["features"][name]
    dataset = make(tmp_path, raw, body)
    for split in SPLITS:
        clicked = dataset.column(split, "label.click") == 1
        assert 0 < clicked.sum() < len(clicked)
        for name in ("cart", "buy"):
            assert np.array_equal(~np.isnan(dataset.column(split, f"label.{name}")), clicked), name


def test_an_empty_label_is_a_plain_one(tmp_path: Path) -> None:
    path = logs.write(tmp_path / "raw", logs.random_logs(2))
    text = path.read_text()
    assert "  click:\n    truth: p\n" in text
    path.write_text(text.replace("  click:\n    truth: p\n", "  click:\n"))
    prepare(path, tmp_path / "data")
    assert Dataset.open(tmp_path / "data").schema.labels["click"].truth is None


def spoil_other_types(raw: logs.Logs, value: Any) -> None:
    """Dwell times of every type but view."""
    events = raw["events"]
    events["dwell"] = [
        dwell if kind == "view" else value
        for dwell, kind in zip(events["dwell"], events["type"], strict=True)
    ]


@pytest.mark.parametrize("value", [None, "none"])
def test_an_event_feature_is_read_on_rows_of_its_type_only(tmp_path: Path, value: Any) -> None:
    """Other types hold nothing, or text, in that column; the outcome is the same."""
    raw, body = logs.random_logs(2), logs.schema()
    del body["events"]["view"]["lists"]  # whose items would have no dwell time
    body["events"]["view"]["features"]["dwell"] = {"role": "event", "kind": "numeric"}
    expected = make(tmp_path / "a", raw, body)
    if value is not None:
        raw["events"]["dwell"] = [str(dwell) for dwell in raw["events"]["dwell"]]
    spoil_other_types(raw, value)
    found = make(tmp_path / "b", raw, body)
    a, b = (Encoders.load(d.path / "encoders").numbers["view/dwell"] for d in (expected, found))
    assert a == b
    for split in SPLITS:
        assert equal(whole_split(found, split)[1], whole_split(expected, split)[1])


def test_values_of_other_types_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    raw, body = logs.random_logs(2), logs.schema()
    events = raw["events"]
    events["page"] = ["7" if kind == "view" else "seven" for kind in events["type"]]
    body["features"]["page"]["table"] = "pages"
    dataset = make(tmp_path, raw, body)
    values = Encoders.load(dataset.path / "encoders").tables["page"].values
    assert values.to_pylist() == [7]


def test_a_bad_value_of_the_type_names_its_row(tmp_path: Path) -> None:
    raw, body = logs.random_logs(2), logs.schema()
    del body["events"]["view"]["lists"]
    body["events"]["view"]["features"]["dwell"] = {"role": "event", "kind": "numeric"}
    spoil_other_types(raw, None)
    row = raw["events"]["type"].index("view", 50)
    raw["events"]["dwell"][row] = float("nan")
    with pytest.raises(DataError, match=rf"events\.parquet, column 'dwell', row {row}: found null"):
        make(tmp_path, raw, body)
