"""How fast a model trains, from a few steps."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import torch

from kunlun.models.head import multi_task_loss
from kunlun.models.io import build
from kunlun.training import environment, source
from kunlun.training.config import RunConfig
from kunlun.training.optim import Optimizers

TIME_TOLERANCE = 0.10  # two measurements of one model on a quiet machine differ by a few percent
WARM_UP, STEPS = 2, 7


def seconds_per_sample(config: RunConfig, section: dict[str, Any], dataset: Any) -> float:
    """Median seconds of a training step on the data's own batches, loading not counted."""
    settings = config.train
    device = environment.pick_device(settings.device)
    with torch.random.fork_rng(devices=[]):
        model = build(dataset.schema, section, config.name).to(device).train()
    optimizers = Optimizers(model, settings)
    weights = torch.ones(len(dataset.schema.tasks), device=device)
    loader = source.make_loader(dataset, "train", settings, shuffle=True)
    found = []
    for batch in itertools.islice(itertools.cycle(loader), WARM_UP + STEPS):
        batch = environment.to_device(batch, device)
        environment.wait(device)
        started = time.perf_counter()
        optimizers.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = model(batch)
        loss, _ = multi_task_loss(logits, batch.labels, batch.weights, weights)
        loss.backward()
        optimizers.clip()
        optimizers.step(1.0)
        environment.wait(device)
        found.append((time.perf_counter() - started) / len(batch))
    return statistics.median(found[WARM_UP:])
