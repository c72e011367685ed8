"""Kunlun on the synthetic stream through the real dataset and loader."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kunlun.config import write_yaml
from kunlun.data.prepare import prepare
from kunlun.errors import RunError
from kunlun.training import source
from kunlun.training.config import load_run_config
from kunlun.training.evaluate import evaluate
from kunlun.training.runlog import read_rows
from kunlun.training.trainer import Trainer, train

TIMES = ("seconds", "samples_per_s", "data_wait", "mfu")
KEYS = [
    "data=synth:tiny", "model.dim=8", "model.layers=2", "model.n_sum=2", "model.head_hidden=8",
    "model.tower={dim: 8, heads: 2, window: 4, ffn: {rows: 4},"
    " pooling: {seeds: 8, tokens: 2, rank: 2}}",
    "model.interaction={experts: 1, rank: 2, hidden: 8}",
    "train={batch_size: 512, epochs: 1, max_steps: 8, log_every: 1, evaluate_every: 0.5,"
    " checkpoint_every: 2, device: cpu}",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of eight steps; the dataset is generated once for this file."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KUNLUN_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield train(load_run_config("demo", KEYS), out=tmp_path_factory.mktemp("r") / "r", quiet=True)
    patch.undo()


def rows(run):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(run)]


def test_summary_is_complete(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["model"]["name"] == "kunlun"
    assert 0 < summary["train"]["mfu"] < 1
    assert summary["train"]["flops_per_sample"] > 0
    for task in ("click", "conversion"):
        found = summary["test"][task]
        assert 0 < found["floor_ne"] < found["expected_ne"]
    assert evaluate(whole)["flops"][0]["module"] == "embedding.tables"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_cut_and_resumed_is_bit_identical(whole, tmp_path, monkeypatch, workers):
    """Dies in step 6; the newest checkpoint is of step 4."""
    config = load_run_config("demo", [*KEYS, f"train.workers={workers}"])
    original = Trainer._step

    def dying(self, batch):
        if self.progress.step == 5:
            raise RunError("cut")
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        with pytest.raises(RunError, match="cut"):
            train(config, out=tmp_path / "r", quiet=True)
    run = train(config, out=tmp_path / "r", resume=True, quiet=True)
    assert rows(run) == rows(whole)
    for name in ("model/model.safetensors", "predictions/test.parquet"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_the_stream_is_generated_again_for_other_code_or_another_version(tmp_path, monkeypatch):
    """Its directory under the cache is named by what made it."""
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))
    made = []
    monkeypatch.setattr(
        "kunlun.data.synthetic.synthesize", lambda config, out: (out.mkdir(), made.append(out))
    )
    data = import_module("kunlun.data")
    copy = shutil.copytree(Path(data.__file__).parent, tmp_path / "data")
    monkeypatch.setattr(data, "__file__", str(copy / "__init__.py"))
    for _ in range(2):
        source._synthetic("tiny")
    assert len(made) == 1
    for name in ("synthetic/world.py", "encode.py"):
        with (copy / name).open("a") as code:
            code.write("# other code")
        source._synthetic("tiny")
    assert len(made) == 3
    monkeypatch.setattr(source, "__version__", "9")
    source._synthetic("tiny")
    assert len(set(made)) == 4
    assert all(place.name.startswith("synth-tiny-") for place in made)


@pytest.mark.parametrize("weighted", [False, True])
def test_base_rates_of_the_train_split(tmp_path, weighted):
    n = 400
    draw = np.random.default_rng(0)
    y, z = draw.integers(0, 2, n).astype(float), np.full(n, np.nan)
    y[:20] = np.nan
    w = np.where(y == 1, 3.0, 1.0) * draw.random(n)
    logs = {
        "u": draw.integers(0, 9, n),
        "i": draw.integers(0, 9, n),
        "time": 10**12 + np.arange(n) * 1000,
    }
    pq.write_table(pa.table({**logs, "y": y, "z": z, "w": w}), tmp_path / "logs.parquet")
    schema = {
        "tables": {
            "impressions": {"files": "logs.parquet", "user": "u", "item": "i", "time": "time"}
        },
        "split": {"valid": "2001-09-09T01:51:40Z", "test": "2001-09-09T01:52:40Z"},
        "labels": {"y": {}, "z": {}},
        "features": {"u": {"role": "user", "kind": "categorical"}},
    } | ({"weight": "w"} if weighted else {})
    write_yaml(tmp_path / "schema.yaml", schema)
    prepare(tmp_path / "schema.yaml", tmp_path / "set")
    train_y, train_w = y[20:300], w[20:300] if weighted else np.ones(280)
    expected = (train_y * train_w).sum() / train_w.sum()
    rates = source.base_rates(source.open_data(str(tmp_path / "set")))
    assert rates == [pytest.approx(expected, rel=1e-6), 0.5]
