"""From logs to a dataset directory: formats, encodings, reuse of encoders, the manifest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kunlun.data.dataset import Dataset
from kunlun.data.encode import Encoders
from kunlun.data.inspect import inspect
from kunlun.data.loader import Loader
from kunlun.data.prepare import prepare
from kunlun.data.validate import validate
from kunlun.errors import SchemaError
from tests.data import cpus, logs
from tests.data.test_point_in_time import SPLITS, equal, make, whole_split


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    path = logs.write(tmp_path / "raw", logs.random_logs(2))
    first, second = prepare(path, tmp_path / "a"), prepare(path, tmp_path / "b")
    assert first == second == validate(path)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


PREPARE = """
import hashlib, shutil, sys
from pathlib import Path
from kunlun.data.prepare import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]))
for file in sorted(Path(sys.argv[2]).rglob("*")):
    if file.is_file():
        print(file.name, hashlib.sha256(file.read_bytes()).hexdigest())
shutil.rmtree(sys.argv[2])
"""


def test_other_cpus_prepare_the_same_bytes(tmp_path: Path) -> None:
    """Edges that another machine moves by one bit would move counts across them."""
    body = logs.schema()
    body["features"]["user_ctr"]["transform"] = "quantile"
    body["features"]["brand_acts"]["transform"] = "standardise"
    body["features"]["brand_page"] |= {"buckets": 16, "transform": "standardise"}
    path = logs.write(tmp_path / "raw", logs.random_logs(2, impressions=400), body)
    assert len(cpus.outputs(PREPARE, str(path), str(tmp_path / "data"))) == 1


def test_csv_is_parquet(tmp_path: Path) -> None:
    raw, body = logs.random_logs(2), logs.schema()
    for column in ("seen", "seen_time"):  # CSV has no lists
        del raw["users"][column]
    del body["features"]["n_seen"], body["events"]["view"]["lists"]
    parquet = make_with(tmp_path / "p", raw, body)
    for name in ("impressions", "events"):
        body["tables"][name]["files"] = f"{name}.csv"
    for name in ("users", "items"):
        body["tables"][name][0]["files"] = f"{name}.csv"
    text = make_with(tmp_path / "c", raw, body, kind="csv")
    for split in SPLITS:
        assert equal(whole_split(parquet, split)[1], whole_split(text, split)[1])
    a, b = contents(parquet.path), contents(text.path)
    differ = [name for name in a if a[name] != b[name]]
    assert differ == ["manifest.json", "schema.yaml"]  # they name the files


def make_with(folder: Path, raw: logs.Logs, body: dict[str, Any], kind: str = "parquet") -> Dataset:
    prepare(logs.write(folder / "raw", raw, body, kind), folder / "data")
    return Dataset.open(folder / "data")


def test_several_files_and_two_user_tables(tmp_path: Path) -> None:
    raw, body = logs.random_logs(2), logs.schema()
    whole = make_with(tmp_path / "whole", raw, body)
    body["tables"]["impressions"]["files"] = "part*/impressions.parquet"
    body["tables"]["users"].append({"files": "more/users.parquet", "key": "uid"})
    users = raw["users"]
    more = {"uid": users["user_id"], "country": users.pop("country")}
    path = logs.write(tmp_path / "split", raw, body)
    logs.write(tmp_path / "split" / "more", {"users": more})
    for name, part in (("part1", slice(0, 70)), ("part2", slice(70, None))):
        rows = {k: v[part] for k, v in raw["impressions"].items()}
        logs.write(tmp_path / "split" / name, {"impressions": rows})
    (tmp_path / "split" / "impressions.parquet").unlink()
    manifest = prepare(path, tmp_path / "data")
    assert list(manifest["inputs"])[:2] == [
        "part1/impressions.parquet",
        "part2/impressions.parquet",
    ]
    for split in SPLITS:
        found, batch = whole_split(Dataset.open(tmp_path / "data"), split)
        expected, other = whole_split(whole, split)
        assert np.array_equal(found, expected)
        assert equal(batch, other)


def test_root_says_where_the_files_are(tmp_path: Path) -> None:
    path = logs.write(tmp_path / "raw", logs.random_logs(2))
    moved = tmp_path / "schemas" / "mine.yaml"
    moved.parent.mkdir()
    path.rename(moved)
    manifest = prepare(moved, tmp_path / "deep" / "er" / "data", root=tmp_path / "raw")
    assert manifest == validate(moved, root=tmp_path / "raw")


def test_splits_order_and_labels(tmp_path: Path) -> None:
    raw = logs.random_logs(2)
    dataset = make(tmp_path, raw)
    impressions = raw["impressions"]
    spans = {"train": (0, 24), "valid": (24, 32), "test": (32, 38)}
    for split, (start, end) in spans.items():
        rows = dataset.column(split, "row")
        inside = [
            i for i, t in enumerate(impressions["time"])
            if logs.moment(start) <= t < logs.moment(end)
        ]  # fmt: skip
        assert rows.tolist() == sorted(inside, key=lambda i: (impressions["time"][i], i))
        _, batch = whole_split(dataset, split)
        for row, label, group in zip(rows, batch.labels.tolist(), batch.group, strict=True):
            click, buy = impressions["click"][row], impressions["buy"][row]
            assert label[0] == click
            assert label[1] == buy if click == 1 and buy is not None else np.isnan(label[1])
            assert group == impressions["session"][row]
    assert dataset.manifest["outside_split"] == sum(
        t >= logs.moment(38) for t in impressions["time"]
    )


def test_manifest_rates_and_floor(tmp_path: Path) -> None:
    dataset = make(tmp_path, logs.random_logs(2))
    for split in SPLITS:
        click = dataset.manifest["splits"][split]["labels"]["click"]
        y, p = dataset.column(split, "label.click"), dataset.column(split, "truth.click")
        rate = y.mean()
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        assert click["known"] == len(y)
        assert click["rate"] == pytest.approx(rate)
        assert click["entropy"] == pytest.approx(entropy)
        loss = -(p * np.log(p) + (1 - p) * np.log(1 - p))
        assert click["ne_floor"] == pytest.approx(loss.mean() / entropy)
    view = dataset.manifest["events"]["view"]
    assert view["seeded"] == sum(len(s or []) for s in logs.random_logs(2)["users"]["seen"])
    assert view["history"]["p10"] <= view["history"]["p50"] <= view["history"]["p100"]


def test_ids_come_from_train_alone(tmp_path: Path) -> None:
    raw = logs.random_logs(2)
    for i, time in enumerate(raw["impressions"]["time"]):
        if time >= logs.moment(24):
            raw["impressions"]["page"][i] = "late"
    for i, time in enumerate(raw["events"]["time"]):
        raw["events"]["page"][i] = "late" if time >= logs.moment(24) else "early"
    dataset = make(tmp_path, raw)
    encoders = Encoders.load(dataset.path / "encoders")
    assert sorted(encoders.tables["page"].values.to_pylist()) == ["early", "feed", "home"]
    assert set(whole_split(dataset, "test")[1].categorical["page"].tolist()) == {1}


def test_item_ids_count_impressions_and_events(tmp_path: Path) -> None:
    """Item 9 is never shown; two events before the end of train bring it into the vocabulary."""
    raw = logs.random_logs(2)
    raw["events"]["item_id"] = [i % 9 for i in raw["events"]["item_id"]]
    raw["users"]["seen"] = [[] for _ in raw["users"]["seen"]]
    early = [i for i, t in enumerate(raw["events"]["time"]) if t < logs.moment(24)]
    for events, known in ((1, False), (2, True)):
        changed = copy.deepcopy(raw)
        for i in early[:events]:
            changed["events"] |= {
                name: [9 if k == i else v for k, v in enumerate(changed["events"][name])]
                for name in ("item_id",)
            }
        dataset = make(tmp_path / str(events), changed)
        values = Encoders.load(dataset.path / "encoders").tables["item_id"].values
        assert (9 in values.to_pylist()) == known


def test_shared_table_is_one_vocabulary(tmp_path: Path) -> None:
    raw, body = logs.random_logs(2), logs.schema()
    raw["users"]["favourite"] = ["d", "d", "a", "q", "b", "b", "b"]
    body["features"]["favourite"] = {"role": "user", "kind": "categorical", "table": "brand"}
    dataset = make_with(tmp_path, raw, body)
    sizes = {n: f.size for n, f in dataset.schema.features.items() if f.kind == "categorical"}
    values = Encoders.load(dataset.path / "encoders").tables["brand"].values.to_pylist()
    assert sizes["brand"] == sizes["favourite"] == len(values) + 2
    _, batch = whole_split(dataset, "train")
    users = dataset.column("train", "user")
    raw_ids = dataset.ids("users").take(users).to_pylist()
    favourite = dict(zip(raw["users"]["user_id"], raw["users"]["favourite"], strict=True))
    for user, found in zip(raw_ids, batch.categorical["favourite"].tolist(), strict=True):
        assert found == values.index(favourite[user]) + 2


def test_hashed_ids_need_no_fit(tmp_path: Path) -> None:
    body = logs.schema()
    body["features"]["user_id"]["hash_buckets"] = 50
    dataset = make_with(tmp_path, logs.random_logs(2), body)
    assert dataset.schema.features["user_id"].size == 52
    ids = [set(whole_split(dataset, s)[1].categorical["user_id"].tolist()) for s in SPLITS]
    assert min(min(i) for i in ids) >= 2
    assert len(set.union(*ids)) == 5


def test_text_ids(tmp_path: Path) -> None:
    """Users and items named by text give the same histories as by number."""
    raw = logs.random_logs(2)
    number = make(tmp_path / "n", raw)
    for table in ("impressions", "events", "users"):
        raw[table]["user_id"] = [f"u{v}" for v in raw[table]["user_id"]]
    text = make(tmp_path / "t", raw)
    for split in SPLITS:
        a, b = whole_split(number, split)[1], whole_split(text, split)[1]
        for kind, events in a.events.items():
            assert torch.equal(events.timestamps, b.events[kind].timestamps)
            assert torch.equal(events.ids["item_id"], b.events[kind].ids["item_id"])


def test_like_reuses_encoders(tmp_path: Path) -> None:
    """New logs without labels, all in one split: the encoders are the old ones, byte by byte."""
    old = make(tmp_path / "old", logs.random_logs(2))
    raw, body = logs.random_logs(11), logs.schema()
    for column in ("click", "buy", "p"):
        del raw["impressions"][column]
    raw["impressions"]["page"][0] = "unheard of"
    later = logs.iso(logs.moment(0))
    body["split"] = {"valid": later, "test": later}
    path = logs.write(tmp_path / "new", raw, body)
    manifest = prepare(path, tmp_path / "data", like=old.path)
    new = Dataset.open(tmp_path / "data")
    assert manifest["splits"]["test"]["labels"]["click"] == {
        "known": 0, "rate": None, "entropy": None,
    }  # fmt: skip
    assert {n: f.size for n, f in new.schema.features.items()} == {
        n: f.size for n, f in old.schema.features.items()
    }
    assert contents(old.path / "encoders") == contents(new.path / "encoders")
    rows, batch = whole_split(new, "test")
    assert len(batch) == 120
    assert bool(batch.labels.isnan().all())
    assert batch.categorical["page"][rows.tolist().index(0)] == 1
    prior = Encoders.load(old.path / "encoders").priors["user_ctr"]
    assert np.allclose(new.column("test", "feature.user_ctr.rate"), prior)
    (train,) = [len(list(Loader(new, s, batch_size=9))) for s in ("train",)]
    assert train == 0


LIKE = [
    ("features.position.buckets", 8, "features.position.buckets: 8 differs from 4 of --like"),
    ("features.age.transform", "log1p", "features.age.transform: 'log1p' differs from 'standard"),
    ("events.view.max_len", 9, "events.view.max_len: 9 differs from 5"),
    ("events.view.features.page.dim", 4, "features.view/page.dim: 4 differs from 16"),
    ("labels.like", {"column": "click"}, "labels: .*'like'.* differ from .*keep names and order"),
    ("features.extra", {"role": "context", "kind": "categorical", "column": "page"}, "'extra' dif"),
]


@pytest.mark.parametrize(("path", "value", "message"), LIKE)
def test_like_refuses_other_definitions(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    old = make(tmp_path / "old", logs.random_logs(2))
    body = logs.schema()
    node: Any = body
    *parents, last = path.split(".")
    for part in parents:
        node = node[part]
    node[last] = value
    with pytest.raises(SchemaError, match=message):
        prepare(
            logs.write(tmp_path / "n", logs.random_logs(3), body), tmp_path / "d", like=old.path
        )
    assert not (tmp_path / "d").exists()


def test_inspect_is_plain(tmp_path: Path) -> None:
    import json

    dataset = make(tmp_path, logs.random_logs(2))
    found = inspect(dataset.path)
    assert json.loads(json.dumps(found)) == found
    assert found["splits"]["train"]["rows"] == dataset.rows("train")
    assert found["splits"]["train"]["time"][0].startswith("2023-11-14T")
    assert [i["name"] for i in found["inputs"]] == [i.name for i in dataset.schema.inputs]
    assert found["events"]["view"]["max_len"] == 5
