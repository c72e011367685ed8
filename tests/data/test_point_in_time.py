"""Histories and counters against one slow loop per sample, and no look into the future."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kunlun.data.dataset import Dataset
from kunlun.data.encode import Encoders
from kunlun.data.loader import Loader
from kunlun.data.past import Past
from kunlun.data.prepare import prepare
from kunlun.features.batch import Batch
from tests.data import logs

SPLITS = ("train", "valid", "test")


def make(folder: Path, raw: logs.Logs, **options: Any) -> Dataset:
    prepare(logs.write(folder / "raw", raw), folder / "data", **options)
    return Dataset.open(folder / "data")


def whole_split(dataset: Dataset, split: str) -> tuple[np.ndarray, Batch]:
    """Source rows and one batch of a whole split, in order."""
    (batch,) = Loader(dataset, split, batch_size=100_000)
    return dataset.column(split, "row"), batch


def naive_history(raw: logs.Logs, user: int, time: int, kind: str) -> list[tuple[int, int]]:
    """(item, time) of every event of that type strictly before the request, oldest first."""
    found: list[tuple[int, int]] = []
    types = {"view": ["view"], "acts": ["click", "other"]}[kind]
    if kind == "view":
        users = raw["users"]
        for i, key in enumerate(users["user_id"]):
            if key == user and users["seen"][i] and users["seen_time"][i] < time:
                found += [(item, users["seen_time"][i]) for item in users["seen"][i]]
    events = raw["events"]
    for i, key in enumerate(events["user_id"]):
        if key == user and events["type"][i] in types and events["time"][i] < time:
            found.append((events["item_id"][i], events["time"][i]))
    found.sort(key=lambda event: event[1])  # stable: list items stay before dated events
    return found


@pytest.mark.parametrize("seed", range(3))
def test_histories_match_a_loop(tmp_path: Path, seed: int) -> None:
    raw = logs.random_logs(seed)
    dataset = make(tmp_path, raw)
    vocabulary = Encoders.load(dataset.path / "encoders").tables["item_id"].values.to_pylist()
    ids = {value: i + 2 for i, value in enumerate(vocabulary)}
    seen = 0
    for split in SPLITS:
        rows, batch = whole_split(dataset, split)
        for kind, events in batch.events.items():
            for position, row in enumerate(rows):
                a, b = events.offsets[position : position + 2].tolist()
                user, time = (raw["impressions"][c][row] for c in ("user_id", "time"))
                expected = naive_history(raw, user, time, kind)[-events.max_len :]
                assert events.timestamps[a:b].tolist() == [t for _, t in expected]
                assert events.ids["item_id"][a:b].tolist() == [ids.get(i, 1) for i, _ in expected]
                seen += b - a
    assert seen > 100


def naive_counter(raw: logs.Logs, row: int, feature: str) -> tuple[int, float]:
    """(labelled impressions, positives) of the same key before the request minus the delay."""
    impressions, items = raw["impressions"], raw["items"]
    brand = dict(zip(items["item_id"], items["brand"], strict=True))

    def key(i: int) -> Any:
        if feature == "user_ctr":
            return impressions["user_id"][i]
        return brand.get(impressions["item_id"][i]), impressions["page"][i]

    def label(i: int) -> Any:
        if feature == "user_ctr":
            return impressions["click"][i]
        return impressions["buy"][i] if impressions["click"][i] == 1 else None

    before = impressions["time"][row] - (0 if feature == "user_ctr" else 2000)
    known = [
        label(i)
        for i in range(len(impressions["time"]))
        if key(i) == key(row) and impressions["time"][i] < before and label(i) is not None
    ]
    return len(known), float(sum(known))


@pytest.mark.parametrize("seed", range(3))
def test_counters_match_a_loop(tmp_path: Path, seed: int) -> None:
    raw = logs.random_logs(seed)
    dataset = make(tmp_path, raw)
    rates = {n: s["rate"] for n, s in dataset.manifest["splits"]["train"]["labels"].items()}
    for feature, label, strength in (("user_ctr", "click", 3.0), ("brand_page", "buy", 5.0)):
        for split in SPLITS:
            rate, count = (
                dataset.column(split, f"feature.{feature}.{part}") for part in ("rate", "count")
            )
            for position, row in enumerate(dataset.column(split, "row")):
                n, positives = naive_counter(raw, int(row), feature)
                expected = (positives + strength * rates[label]) / (n + strength)
                assert count[position] == pytest.approx(np.log1p(n), rel=1e-6)
                assert rate[position] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_counters_of_events_match_a_loop(tmp_path: Path, seed: int) -> None:
    """Views, list items included, and acts of the same user and brand, one second back."""
    raw = logs.random_logs(seed)
    dataset = make(tmp_path, raw)
    brand = dict(zip(raw["items"]["item_id"], raw["items"]["brand"], strict=True))
    views, acts = (
        sum(
            time < logs.moment(24)
            for user in {*raw["users"]["user_id"], *raw["events"]["user_id"]}
            for _, time in naive_history(raw, user, 2**60, kind)
        )
        for kind in ("view", "acts")
    )
    seen = 0
    for split in SPLITS:
        rate, count = (
            dataset.column(split, f"feature.brand_acts.{part}") for part in ("rate", "count")
        )
        for position, row in enumerate(dataset.column(split, "row")):
            user, item, time = (raw["impressions"][c][row] for c in ("user_id", "item_id", "time"))
            shown, acted = (
                sum(
                    brand.get(i) == brand.get(item)
                    for i, _ in naive_history(raw, user, time - 1000, kind)
                )
                for kind in ("view", "acts")
            )
            known = max(shown, acted)
            expected = (acted + 2.0 * min(1.0, acts / views)) / (known + 2.0)
            assert count[position] == pytest.approx(np.log1p(known), rel=1e-6)
            assert rate[position] == pytest.approx(expected, rel=1e-6)
            seen += known
    assert seen > 50


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if hasattr(a, "__dict__"):
        return equal(vars(a), vars(b))
    if a is None or isinstance(a, int):
        return bool(a == b)
    return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


@pytest.mark.parametrize("step", [6, 20, 30])
def test_the_future_changes_nothing(tmp_path: Path, step: int) -> None:
    """Events at or after a moment, and impressions after it, are rewritten; samples up to that
    moment, encoded alike, stay bit-equal in storage and as batches."""
    raw = logs.random_logs(5)
    first = make(tmp_path / "a", raw)
    changed = copy.deepcopy(raw)
    now = logs.moment(step)
    for i, time in enumerate(raw["events"]["time"]):
        if time >= now:
            changed["events"]["item_id"][i] = (raw["events"]["item_id"][i] + 1) % 10
            changed["events"]["type"][i] = "view"
            changed["events"]["dwell"][i] = 99.0
    for i, time in enumerate(raw["impressions"]["time"]):
        if time > now or (time == now and i % 2):
            changed["impressions"]["click"][i] = 1 - raw["impressions"]["click"][i]
    second = make(tmp_path / "b", changed, like=first.path)
    compared = 0
    for split in SPLITS:
        time = first.column(split, "time")
        keep = int((time < now).sum())
        if not keep:
            continue
        compared += keep
        for name in ("row", "user", "item", "label.click", "feature.user_ctr.rate"):
            old, new = first.column(split, name), second.column(split, name)
            assert np.array_equal(old[:keep], new[:keep], equal_nan=True), name
        old_batch, new_batch = (
            next(iter(Loader(d, split, batch_size=keep))) for d in (first, second)
        )
        assert equal(old_batch, new_batch)
    assert compared > 10


def test_labels_of_the_same_moment_stay_hidden(tmp_path: Path) -> None:
    """Flipping a label leaves the counters of its own and of tied impressions as they were."""
    raw = logs.random_logs(7)
    first = make(tmp_path / "a", raw)
    time = raw["impressions"]["time"][50]
    changed = copy.deepcopy(raw)
    changed["impressions"]["click"][50] = 1 - raw["impressions"]["click"][50]
    second = make(tmp_path / "b", changed, like=first.path)
    for split in SPLITS:
        tied = first.column(split, "time") <= time
        for part in ("rate", "count"):
            a, b = (d.column(split, f"feature.user_ctr.{part}") for d in (first, second))
            assert np.array_equal(a[tied], b[tied])


@pytest.mark.parametrize("wide", [False, True])
def test_past_against_a_loop(wide: bool) -> None:
    """Both ways to order (key, time), one for spans that do not fit an int64 with the keys."""
    rng = np.random.default_rng(0)
    scale = 2**40 if wide else 1
    keys = rng.integers(0, 6, 80) * (scale if wide else 1)
    times = rng.integers(0, 20, 80) * (scale // 4 if wide else 1)
    past = Past(keys, times)
    assert (past.moments is not None) == wide
    query_keys, query_times = np.append(keys, keys + 1), np.append(times, times + 3)
    end, start = past.before(query_keys, query_times), past.starts(query_keys)
    for key, time, a, b in zip(query_keys, query_times, start, end, strict=True):
        expected = sorted((t, i) for i, t in enumerate(times) if keys[i] == key and t < time)
        assert past.order[a:b].tolist() == [i for _, i in expected]


def test_past_of_nothing() -> None:
    past = Past(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert past.before(np.arange(3), np.arange(3)).tolist() == [0, 0, 0]
