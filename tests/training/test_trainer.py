"""The loop, its run directory, determinism, resume and interruption."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest
import standin
import torch

from kunlun.errors import DataError, RunError
from kunlun.features.batch import Batch
from kunlun.metrics import RankingMetrics
from kunlun.models import io
from kunlun.training import checkpoint, environment, source
from kunlun.training.environment import to_device
from kunlun.training.plan import make_plan
from kunlun.training.runlog import read_rows
from kunlun.training.scoring import mean_ne
from kunlun.training.trainer import Trainer, train

TIMES = ("seconds", "samples_per_s", "data_wait", "mfu")


def losses(run):
    """Rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(run)]


def test_run_directory_is_what_the_design_says(data, config, tmp_path):
    run = train(config(), out=tmp_path / "r", quiet=True)
    summary = json.loads((run / "summary.json").read_text())
    for split in ("valid", "test"):
        assert set(summary[split]) == {"click", "buy"}
        keys = {"ne", "auc", "gauc", "logloss", "calibration", "base_rate", "rows"}
        assert keys <= set(summary[split]["click"])
    keys = {"samples", "samples_per_s", "flops_per_sample", "mfu", "data_wait", "seconds"}
    assert keys <= set(summary["train"])
    assert summary["train"]["samples"] == 1200
    assert 0 < summary["train"]["data_wait"] < 1
    assert summary["model"]["name"] == "tiny"
    assert summary["model"]["embedding_params"] == 4 * (40 + 30)
    assert summary["test"]["click"]["rows"] == 300
    assert summary["test"]["click"]["ne"] < 1
    assert summary["test"]["click"]["floor_ne"] < summary["test"]["click"]["expected_ne"]
    for name in ("config.yaml", "env.json", "evaluation.json", "predictions/test.parquet",
                 "model/config.json", "model/model.safetensors"):  # fmt: skip
        assert (run / name).is_file(), name
    assert list(run.glob("events.out.tfevents.*"))
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "step_00000021", "step_00000024",
    ]  # fmt: skip
    rows = read_rows(run, "train")
    assert [r["step"] for r in rows] == list(range(1, 25))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [r["step"] for r in read_rows(run, "valid")] == [3, 6, 9, 12, 15, 18, 21, 24]
    env = json.loads((run / "env.json").read_text())
    assert env["threads"] == torch.get_num_threads()
    assert len(env["data"]["encoders"]) == 64


def test_same_seed_same_run_bit_for_bit(data, config, tmp_path):
    one, two, other = (
        train(config(seed=s), out=tmp_path / n, quiet=True)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    )
    assert losses(one) == losses(two)
    weights = [(r / "model" / "model.safetensors").read_bytes() for r in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("ema", [0.15, 0.999])
def test_average_is_validated_kept_and_follows_its_formula(
    data, config, tmp_path, monkeypatch, ema
):
    seen = []
    original = Trainer._step

    def step(self, batch):
        original(self, batch)
        seen.append(self.model.head.up.weight.detach().clone())

    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: _fill(self))
    changes = {"ema": ema, "max_steps": 3, "evaluate_every": 1.0}
    run = train(config(**changes), out=tmp_path / "r", quiet=True)
    mean = torch.full_like(seen[0], 0.1)
    for step, weight in enumerate(seen):
        decay = min(ema, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    torch.testing.assert_close(io.load(run / "model").head.up.weight.detach(), mean)


def _fill(linear):
    for parameter in linear.parameters():
        torch.nn.init.constant_(parameter, 0.1)


def test_bf16_trains(data, config, tmp_path):
    run = train(config(precision="bf16"), out=tmp_path / "r", quiet=True)
    rows = read_rows(run, "train")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert io.load(run / "model").head.up.weight.dtype == torch.float32


@pytest.mark.parametrize(("speed", "warned"), [(5e9, True), (9e10, False)])
def test_slow_bf16_is_said(speed, warned, data, config, tmp_path, monkeypatch, capsys):
    peaks = {torch.bfloat16: speed, torch.float32: 1e11}
    monkeypatch.setattr(environment, "peak_flops", lambda _, dtype: peaks[dtype])
    train(config(precision="bf16", max_steps=1), out=tmp_path / "r")
    said = "this CPU multiplies bfloat16 at 5% of the speed of float32" in capsys.readouterr().err
    assert said == warned


def test_steps_follow_epochs_and_max_steps(data, config, tmp_path):
    for changes, steps in (
        ({"epochs": 0.5}, 6),
        ({"epochs": 1.3}, 16),
        ({"epochs": 3.0, "max_steps": 5}, 5),
    ):
        run = train(config(**changes), out=tmp_path / str(steps), quiet=True)
        assert read_rows(run, "train")[-1]["step"] == steps


def test_log_rows_are_means_over_their_window(data, config, tmp_path):
    each = read_rows(train(config(), out=tmp_path / "a", quiet=True), "train")
    every = read_rows(train(config(log_every=10), out=tmp_path / "b", quiet=True), "train")
    assert [r["step"] for r in every] == [10, 20, 24]
    losses_ = [r["loss"] for r in each]
    expected = [sum(losses_[a:b]) / (b - a) for a, b in ((0, 10), (10, 20), (20, 24))]
    assert [r["loss"] for r in every] == pytest.approx(expected)


def test_data_wait_counts_the_time_blocked_on_the_loader(data, config, tmp_path, monkeypatch):
    original = standin.StandinLoader.__iter__

    def slow(self):
        for batch in original(self):
            if self.shuffle:
                time.sleep(0.05)
            yield batch

    monkeypatch.setattr(standin.StandinLoader, "__iter__", slow)
    run = train(config(epochs=1.0), out=tmp_path / "r", quiet=True)
    spent = json.loads((run / "summary.json").read_text())["train"]
    assert spent["data_wait"] * spent["seconds"] >= 12 * 0.05
    assert spent["data_wait"] <= 1


def test_an_empty_train_split_is_a_clear_error(data, config, tmp_path, monkeypatch):
    empty = standin.Standin(sizes={"train": 0, "valid": 5, "test": 5})
    monkeypatch.setattr(source, "open_data", lambda name: empty)
    with pytest.raises(DataError, match=r"the train split has no samples; check split times"):
        train(config(), out=tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()
    with pytest.raises(DataError, match=r"the train split has no samples; check split times"):
        make_plan(config())


def test_a_gpu_gets_page_locked_batches_the_cpu_the_batch_as_it_is(data, monkeypatch):
    calls = []

    def pin_memory(self):
        calls.append("pin")
        return self

    def to(self, device, non_blocking=False):
        calls.append((str(device), non_blocking))
        return self

    monkeypatch.setattr(Batch, "pin_memory", pin_memory)
    monkeypatch.setattr(Batch, "to", to)
    batch = data.batch("train", np.arange(3))
    to_device(batch, torch.device("cpu"))
    assert calls == [("cpu", False)]
    to_device(batch, torch.device("cuda", 1))
    assert calls[1:] == ["pin", ("cuda:1", True)]


NE = {"a": {"ne": 0.8}, "b": {"ne": 0.9}}


@pytest.mark.parametrize(
    ("metrics", "tasks", "mean"),
    [
        (NE, ["a", "b"], 0.85),
        (NE, ["a"], 0.8),
        ({**NE, "b": {"ne": None}}, ["a", "b"], None),
        ({"a": {"ne": 0.8}}, ["a", "b"], None),
        (NE, [], None),
    ],
)
def test_a_mean_lacks_no_task(metrics, tasks, mean):
    found = mean_ne(metrics, tasks)
    assert found is mean is None or found == pytest.approx(mean)


def test_a_validation_that_lost_a_task_is_not_the_best(data, config, tmp_path, monkeypatch):
    """NE of click falls, that of buy gets lost: the model before is kept, and counts as stale."""
    clicks = iter([0.9, 0.8, 0.7, 0.6])
    tasks = iter([0.9, None, None, None])

    def compute(self):
        return {"click": {"ne": next(clicks), "auc": None}, "buy": {"ne": next(tasks), "auc": None}}

    monkeypatch.setattr(RankingMetrics, "compute", compute)
    run = train(config(patience=2, evaluate_every=0.25), out=tmp_path / "r", quiet=True, test=False)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["valid"]["buy"]["ne"] == 0.9
    assert summary["train"]["stopped"] == "no better validation NE in 2 validations"


def test_validation_rows_say_how_far_training_was(data, config, tmp_path):
    changes = {"max_steps": 6, "log_every": 50, "evaluate_every": 0.1}
    run = train(config(**changes), out=tmp_path / "r", quiet=True)
    rows = read_rows(run, "valid")
    size = config().train.batch_size
    assert [row["samples"] for row in rows] == [row["step"] * size for row in rows]
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(rows))


def test_a_checkpoint_of_other_code_is_refused_in_one_line(data, config, tmp_path):
    run = train(config(max_steps=2), out=tmp_path / "r", quiet=True)
    (run / "summary.json").unlink()
    place = checkpoint.complete(run / "checkpoints")[-1]
    other = Trainer(config(max_steps=2), run, source.open_data("standin"))
    other.model.head.register_buffer("later", torch.zeros(1))
    with pytest.raises(RunError, match=r"does not fit this version of kunlun \(.*head\.later"):
        other.restore(place)
