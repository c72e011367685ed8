"""Dataset directories appear whole or not at all, and damage is found when they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kunlun.data.dataset import Dataset
from kunlun.data.inspect import inspect
from kunlun.data.loader import Loader
from kunlun.data.prepare import prepare
from kunlun.errors import DataError
from tests.data import logs


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return logs.write(tmp_path / "raw", logs.random_logs(1))


def test_occupied_out(tmp_path: Path, good: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare(good, out)
    with pytest.raises(DataError, match="out: exists already; choose another --out"):
        prepare(good, out)
    assert inspect(out)["splits"]["train"]["rows"] > 0


def test_interrupt_leaves_nothing(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kunlun.data.prepare.event_store.write", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(good, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


TORN = ["manifest.json", "users.parquet", "events/view.arrow", "samples/train/part-00000.parquet"]


@pytest.mark.parametrize("name", TORN)
def test_torn_directory(tmp_path: Path, good: Path, name: str) -> None:
    out = tmp_path / "out"
    prepare(good, out)
    file = out / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{file.name}"):
        list(Loader(Dataset.open(out), "train", batch_size=8))
    file.unlink()
    with pytest.raises(DataError):
        list(Loader(Dataset.open(out), "train", batch_size=8))


def test_not_a_dataset(tmp_path: Path, good: Path) -> None:
    with pytest.raises(DataError, match=r"is not a dataset directory.*kunlun data prepare"):
        Dataset.open(good.parent)
    prepare(good, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    with pytest.raises(DataError, match="'dev' is not a split; expected train, valid, test"):
        dataset.rows("dev")
    with pytest.raises(DataError, match=r"column 'label\.clic': no such column; it has user"):
        dataset.column("train", "label.clic")
