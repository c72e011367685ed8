"""A run in a process of its own, slow enough to be killed: slow_run.py RUN WORKERS."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import standin

from kunlun.training.config import RunConfig, TrainConfig
from kunlun.training.trainer import Trainer, train

original = Trainer._step


def slowly(self: Trainer, batch: object) -> None:
    time.sleep(0.05)
    original(self, batch)


if __name__ == "__main__":
    Trainer._step = slowly
    standin.install()
    settings = TrainConfig(
        batch_size=50, epochs=2.0, lr=0.01, log_every=1, device="cpu",
        workers=int(sys.argv[2]), checkpoint_every=5,
    )  # fmt: skip
    config = RunConfig(name="r", data="standin", model={"name": "tiny"}, train=settings)
    try:
        train(config, out=Path(sys.argv[1]), resume=True, quiet=True)
    except KeyboardInterrupt:
        sys.exit(130)
