"""How fast models train, from a few steps each."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kunlun.models.head import multi_task_loss
from kunlun.models.io import build
from kunlun.training import environment, source
from kunlun.training.config import RunConfig
from kunlun.training.optim import Optimizers

TIME_TOLERANCE = 0.10  # two measurements of one model on a quiet machine differ by a few percent
WARM_UP, STEPS = 3, 7  # the first two compile, if asked for
ROUNDS = 3


def speeds(configs: Sequence[RunConfig], dataset: Any) -> list[list[float]]:
    """Seconds per sample of every run, one number a round; each round steps through all of them, so
    that a slow minute of the machine meets them alike."""
    rounds = [[seconds_per_sample(c, c.model, dataset) for c in configs] for _ in range(ROUNDS)]
    return [list(each) for each in zip(*rounds, strict=True)]


def seconds_per_sample(config: RunConfig, section: dict[str, Any], dataset: Any) -> float:
    """Median seconds of a training step on the data's own batches, loading not counted.

    With one CPU thread, seconds of its own work: those in which others had the core do not count.
    """
    settings = config.train
    device = environment.pick_device(settings.device)
    clock = _clock(device)
    with torch.random.fork_rng(devices=[]):
        model = build(dataset.schema, section, config.name).to(device).train()
    if settings.compile:  # as in training
        model.backbone.compile(dynamic=True)  # type: ignore[union-attr]
    optimizers = Optimizers(model, settings)
    weights = torch.ones(len(dataset.schema.tasks), device=device)
    loader = source.make_loader(dataset, "train", settings, shuffle=True)
    found = []
    for batch in itertools.islice(itertools.cycle(loader), WARM_UP + STEPS):
        batch = environment.to_device(batch, device)
        environment.wait(device)
        started = clock()
        optimizers.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = model(batch)
        loss, _ = multi_task_loss(logits, batch.labels, batch.weights, weights)
        loss.backward()
        optimizers.clip(optimizers.norm())
        optimizers.step(1.0)
        environment.wait(device)
        found.append((clock() - started) / len(batch))
    return statistics.median(found[WARM_UP:])


def conditions(config: RunConfig, dataset: Any) -> dict[str, Any]:
    """What seconds of steps depend on besides the model; kept with what was measured."""
    held = source.fingerprint(dataset)
    about = environment.describe(environment.pick_device(config.train.device))
    train = {key: value for key, value in config.train.to_dict().items() if key != "seed"}
    data = {key: held[key] for key in source.SAME_DATA}
    return {"data": data, "train": train, "device": about["device"], "threads": about["threads"]}


def _clock(device: torch.device) -> Callable[[], float]:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter
