"""A dataset of a few hundred samples, made once, and runs of a few steps on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kunlun.data.synthetic import PRESETS, synthesize
from kunlun.training.config import RunConfig, load_run_config

SMALL = ("model.dim=16", "model.layers=2", "model.n_sum=4", "model.head_hidden=16",
         "model.tower={dim: 16, heads: 2, window: 4, ffn: {rows: 4}, pooling: "
         "{seeds: 6, tokens: 2, rank: 2, reduce: sum}}",
         "model.interaction={experts: 2, rank: 2, hidden: 16}",
         "train.batch_size=64", "train.max_steps=4", "train.log_every=1",
         "train.checkpoint_every=2")  # fmt: skip


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset."""
    folder = tmp_path_factory.mktemp("data") / "set"
    config = dataclasses.replace(PRESETS["tiny"], users=40, items=128, steps=40, burn_in=20, seed=3)
    synthesize(config, folder)
    return folder


@pytest.fixture
def config(place: Path) -> RunConfig:
    """A small Kunlun for four steps."""
    return load_run_config("small", [f"data={place}", *SMALL])
