"""The loop, its run directory, determinism, resume and interruption."""

from __future__ import annotations

import json

import torch

from kunlun.training.runlog import read_rows
from kunlun.training.trainer import train

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
