"""The loader: every row once, the same batches for any number of workers, resumable anywhere."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from kunlun.data import loader as loader_module
from kunlun.data import prepare as prepare_module
from kunlun.data.dataset import Dataset
from kunlun.data.loader import Loader, _Batches
from kunlun.data.packed import pack, unpack
from kunlun.data.prepare import prepare
from kunlun.errors import ConfigError, RunError
from kunlun.features.batch import Batch
from tests.data import logs
from tests.data.test_point_in_time import equal


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """About 600 training rows in row groups of 32 and files of 128."""
    folder = tmp_path_factory.mktemp("loader")
    raw = logs.random_logs(3, impressions=1000, events=600)
    raw["impressions"]["session"] = list(range(1000))  # `group` names the row
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "ROW_GROUP", 32)
        patch.setattr(prepare_module, "ROWS_PER_FILE", 128)
        prepare(logs.write(folder / "raw", raw), folder / "data")
    return Dataset.open(folder / "data")


def rows(batches: list[Batch]) -> list[int]:
    return [int(g) for b in batches for g in b.group]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def test_files_and_row_groups(dataset: Dataset) -> None:
    assert len(dataset.files("train")) > 3
    assert len(dataset.chunks("train")) > 15
    assert dataset.rows("train") == dataset.manifest["splits"]["train"]["rows"]


def test_without_shuffle_in_order_of_time(dataset: Dataset) -> None:
    batches = list(Loader(dataset, "train", batch_size=50))
    assert rows(batches) == dataset.column("train", "row").tolist()
    time = torch.cat([b.request_time for b in batches])
    assert bool((time.diff() >= 0).all())


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 7, 50, 10_000])
def test_shuffle_covers_each_row_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, window: int, batch_size: int
) -> None:
    monkeypatch.setattr(loader_module, "WINDOW", window)
    loader = Loader(dataset, "train", batch_size=batch_size, shuffle=True, seed=4)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-dataset.rows("train") // batch_size)
    assert rows(batches) != dataset.column("train", "row").tolist()
    assert sorted(rows(batches)) == sorted(dataset.column("train", "row").tolist())


def test_shuffled_rows_keep_their_values(dataset: Dataset) -> None:
    """A row is the same whatever its batch: compared with the unshuffled reading."""
    (plain,) = Loader(dataset, "train", batch_size=10_000)
    where = {int(g): i for i, g in enumerate(plain.group)}
    for batch in Loader(dataset, "train", batch_size=64, shuffle=True):
        index = torch.tensor([where[int(g)] for g in batch.group])
        assert torch.equal(batch.numeric, plain.numeric[index])
        assert torch.equal(batch.categorical["item_id"], plain.categorical["item_id"][index])
        assert torch.equal(batch.labels.nan_to_num(9), plain.labels[index].nan_to_num(9))
        tags = plain.multi["tags"].select(index)
        assert torch.equal(batch.multi["tags"].values, tags.values)
        assert torch.equal(batch.multi["tags"].offsets, tags.offsets)


def test_seed_and_epoch_change_the_order(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", batch_size=50, shuffle=True, seed=1)
    first, again = rows(list(loader)), rows(list(loader))
    loader.set_epoch(1)
    second = rows(list(loader))
    other = rows(list(Loader(dataset, "train", batch_size=50, shuffle=True, seed=2)))
    assert first == again
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_partition(dataset: Dataset, world: int, drop_last: bool) -> None:
    def make(rank: int) -> Loader:
        return Loader(
            dataset, "train", batch_size=10, shuffle=True, rank=rank, world=world,
            drop_last=drop_last,
        )  # fmt: skip

    parts = [list(make(rank)) for rank in range(world)]
    found = sorted(row for part in parts for row in rows(part))
    expected = sorted(dataset.column("train", "row").tolist())
    if drop_last:
        assert {len(b) for part in parts for b in part} == {10}
        assert len({len(part) for part in parts}) == 1
        assert len(set(found)) == len(found) == len(expected) // (10 * world) * 10 * world
    else:
        assert found == expected
    whole = list(Loader(dataset, "train", batch_size=10 * world, shuffle=True))
    assert rows([part[3] for part in parts]) == rows([whole[3]])  # ranks share a global batch


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_batches(dataset: Dataset, workers: int) -> None:
    alone = list(Loader(dataset, "train", batch_size=40, shuffle=True, seed=3))
    assert same(alone, list(Loader(dataset, "train", batch_size=40, shuffle=True, seed=3,
                                   workers=workers)))  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 5])
def test_resume_goes_on_bit_identically(dataset: Dataset, workers: int, consumed: int) -> None:
    loader = Loader(dataset, "train", batch_size=40, shuffle=True, seed=3, workers=workers)
    loader.set_epoch(2)
    whole = list(loader)
    running = iter(loader)
    for _ in range(consumed):
        next(running)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    running.close()  # type: ignore[attr-defined]
    assert state["consumed"] == consumed  # not what workers have made ahead
    fresh = Loader(dataset, "train", batch_size=40, shuffle=True, seed=3)
    fresh.load_state_dict(state)
    fresh.set_epoch(2)
    assert same(list(fresh), whole[consumed:])
    assert same(list(fresh), whole)  # only the first pass was shortened


def test_resume_at_the_end_of_an_epoch(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", batch_size=40, shuffle=True)
    count = len(list(loader))
    fresh = Loader(dataset, "train", batch_size=40, shuffle=True)
    fresh.load_state_dict(loader.state_dict())
    assert list(fresh) == []
    fresh.set_epoch(1)
    assert len(list(fresh)) == count


def test_state_of_other_settings(dataset: Dataset) -> None:
    state = Loader(dataset, "train", batch_size=40).state_dict()
    with pytest.raises(RunError, match="loader state: batch_size was 40, is 41 now; resume with"):
        Loader(dataset, "train", batch_size=41).load_state_dict(state)


def test_batches_cross_to_a_fresh_process(dataset: Dataset) -> None:
    """What a spawned worker gets is the pickle of the maker of batches."""
    maker = _Batches(
        dataset, "train", Loader(dataset, "train", batch_size=40, shuffle=True).plan, False
    )
    copy = pickle.loads(pickle.dumps(maker))
    assert equal(unpack(copy[3]), maker.make(3))


def test_impossible_settings(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="batch_size 0, workers 0, rank 0 of 1: expected"):
        Loader(dataset, "train", batch_size=0)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Loader(dataset, "train", batch_size=1, rank=2, world=2)


def test_contents_agree_with_the_schema(dataset: Dataset) -> None:
    schema = dataset.schema
    batch = next(iter(Loader(dataset, "train", batch_size=64, shuffle=True)))
    kinds = {i.name: i.kind for i in schema.inputs}
    assert list(batch.categorical) == [n for n, k in kinds.items() if k == "categorical"]
    assert list(batch.multi) == [n for n, k in kinds.items() if k == "multi"]
    assert batch.numeric.shape == (64, len(schema.numeric))
    assert bool(batch.numeric.isfinite().all())
    assert batch.request is None
    sizes = schema.table_sizes
    for entry in schema.inputs:
        if entry.kind == "categorical":
            ids = batch.categorical[entry.name]
            assert ids.dtype == torch.int64
            assert 0 <= int(ids.min()) <= int(ids.max()) < sizes[entry.table][0]
    for kind, events in batch.events.items():
        inputs = schema.event_inputs(kind)
        assert set(events.ids) == {i.name for i in inputs if i.kind != "numeric"}
        assert events.numeric.shape[1] == sum(i.kind == "numeric" for i in inputs)
        lengths = events.offsets.diff()
        assert int(lengths.max()) <= events.max_len == schema.events[kind].max_len
        assert events.offsets.dtype == events.timestamps.dtype == torch.int64
        assert bool((lengths == 0).any())
    assert batch.labels.shape == (64, 2)
    assert bool(batch.labels[:, 1].isnan().any())


def test_shared_requests_say_the_same(dataset: Dataset) -> None:
    for plain, shared in zip(
        Loader(dataset, "train", batch_size=100),
        Loader(dataset, "train", batch_size=100, group_requests=True),
        strict=True,
    ):
        assert shared.request is not None
        assert len(shared.request_time) < len(plain)
        assert torch.equal(shared.request_time[shared.request], plain.request_time)
        for kind, events in shared.events.items():
            lengths = plain.events[kind].offsets.diff()
            assert torch.equal(events.offsets.diff()[shared.request], lengths)
            for row in range(0, len(plain), 13):
                a, b = plain.events[kind].offsets[row : row + 2].tolist()
                request = int(shared.request[row])
                c, d = events.offsets[request : request + 2].tolist()
                for name, ids in events.ids.items():
                    assert torch.equal(ids[c:d], plain.events[kind].ids[name][a:b])


def test_pack_and_unpack(dataset: Dataset) -> None:
    batch = next(iter(Loader(dataset, "train", batch_size=33, group_requests=True)))
    assert equal(unpack(pickle.loads(pickle.dumps(pack(batch)))), batch)


def test_a_batch_owns_its_memory(dataset: Dataset) -> None:
    batches = iter(Loader(dataset, "train", batch_size=40))
    first = next(batches)
    before = first.weights.clone()
    first.weights.zero_()
    first.group.zero_()
    again = next(iter(Loader(dataset, "train", batch_size=40)))
    assert torch.equal(again.weights, before)
    assert rows([again]) == dataset.column("train", "row")[:40].tolist()
    assert np.array_equal(dataset.column("train", "weight")[:40], before.numpy())


def test_dataset_pickles_as_its_path(dataset: Dataset) -> None:
    Loader(dataset, "train", batch_size=10)
    assert len(pickle.dumps(dataset)) < 500
    assert pickle.loads(pickle.dumps(dataset)).rows("train") == dataset.rows("train")
