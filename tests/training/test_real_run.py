"""Kunlun on the synthetic stream through the real dataset and loader."""

from __future__ import annotations

import json

import pytest

from kunlun.errors import RunError
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
