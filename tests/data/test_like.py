"""--like with logs of new days only: what it takes, what it refuses, what it warns of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kunlun.data.dataset import Dataset
from kunlun.data.prepare import prepare
from kunlun.data.validate import validate
from kunlun.errors import DataError
from tests.data import logs
from tests.data.test_point_in_time import make

NEW = 100  # steps after which the new logs begin


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("old"), logs.random_logs(2)).path


def new_days(**split: str) -> tuple[logs.Logs, dict[str, Any]]:
    """Unlabelled logs of later moments, the schema of the old ones without its end."""
    raw, body = logs.random_logs(3), logs.schema()
    for table in ("impressions", "events"):
        raw[table]["time"] = [t + NEW * logs.STEP for t in raw[table]["time"]]
    for column in ("click", "buy", "p"):
        del raw["impressions"][column]
    del body["split"]["end"]
    body["split"] |= split
    return raw, body


def test_new_days_need_no_train_rows_labels_or_weights(tmp_path: Path, old: Path) -> None:
    raw, body = new_days()
    body["weight"] = "w"
    path = logs.write(tmp_path / "raw", raw, body)
    manifest = prepare(path, tmp_path / "data", like=old)
    assert {k: v["rows"] for k, v in manifest["splits"].items()} == {
        "train": 0, "valid": 0, "test": 120,
    }  # fmt: skip
    assert np.array_equal(Dataset.open(tmp_path / "data").column("test", "weight"), np.ones(120))


def test_new_days_behind_the_end_have_their_own_message(tmp_path: Path, old: Path) -> None:
    raw, body = new_days(end=logs.iso(logs.moment(38)))
    path = logs.write(tmp_path / "raw", raw, body)
    with pytest.raises(
        DataError,
        match=r"no impressions inside the split; the log spans 2023-11-14T22:15:.*: move or drop "
        r"split\.start and split\.end \(with --like train and valid may be empty\)",
    ):
        prepare(path, tmp_path / "data", like=old)


def test_logs_without_their_past_are_warned_of(tmp_path: Path, old: Path) -> None:
    raw, body = new_days()
    for rows in (raw["users"]["seen"], raw["users"]["seen_time"]):
        rows[:] = [None] * len(rows)
    path = logs.write(tmp_path / "raw", raw, body)
    found = validate(path, like=old)["warnings"]
    assert len(found) == 3
    assert found[0].startswith("impressions begin 2023-11-14T22:15:00, those of ")
    assert "counters miss what came before" in found[0]
    assert found[1].startswith("events of type 'view' begin 2023-11-14T22:15:")
    assert "histories and counters miss what came before: add the earlier files" in found[1]
    assert found[2].startswith("events of type 'acts'")


def test_nothing_to_warn_of(tmp_path: Path, old: Path) -> None:
    raw, body = new_days()
    earlier = logs.random_logs(2)
    for table in ("impressions", "events"):
        names = raw[table].keys() & earlier[table].keys()
        raw[table] = {name: earlier[table][name] + raw[table][name] for name in names}
    raw["users"] = earlier["users"]
    path = logs.write(tmp_path / "whole", raw, body)
    assert "warnings" not in validate(path, like=old)
    assert "warnings" not in validate(logs.write(tmp_path / "raw", earlier))


def test_without_counters_the_impressions_of_the_past_are_not_missed(tmp_path: Path) -> None:
    body = logs.schema()
    body["features"] = {
        name: feature for name, feature in body["features"].items() if feature["kind"] != "counter"
    }
    first = logs.write(tmp_path / "first", logs.random_logs(2), body)
    prepare(first, tmp_path / "old")
    raw, _ = new_days()
    raw["events"] = logs.random_logs(2)["events"]
    del body["split"]["end"]
    path = logs.write(tmp_path / "raw", raw, body)
    assert "warnings" not in validate(path, like=tmp_path / "old")


def test_like_is_a_dataset(tmp_path: Path) -> None:
    path = logs.write(tmp_path / "raw", logs.random_logs(2))
    with pytest.raises(DataError, match=r"raw: is not a dataset directory \(no manifest\.json\)"):
        validate(path, like=path.parent)
