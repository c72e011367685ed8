from __future__ import annotations

import pytest
import standin

from kunlun import models
from kunlun.training import source
from kunlun.training.config import RunConfig, TrainConfig


@pytest.fixture
def data(monkeypatch):
    """The stand-in dataset, in place of data from disk."""
    monkeypatch.setitem(models.MODELS, "tiny", (standin.TinyConfig, standin.Tiny))
    monkeypatch.setattr(source, "open_data", source.open_data)
    monkeypatch.setattr(source, "make_loader", source.make_loader)
    return standin.install()


@pytest.fixture
def config():
    """config(key=value, ...) -> RunConfig of a run of a few seconds; keys are TrainConfig's."""

    def make(**changes):
        values = {"batch_size": 50, "epochs": 2.0, "lr": 0.01, "log_every": 1, "device": "cpu"}
        return RunConfig(
            name="r", data="standin", model={"name": "tiny"}, train=TrainConfig(**values | changes)
        )

    return make
