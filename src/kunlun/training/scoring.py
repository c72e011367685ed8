"""Run a model over a loader without learning: logits and what metrics need, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kunlun.features.batch import Batch
from kunlun.metrics import RankingMetrics
from kunlun.training.environment import to_device


@dataclass
class Scored:
    """n rows in loader order. logits and labels float32 [n, tasks], weights float32 [n],
    group int64 [n], request_time int64 [n] ms, history int64 [n] (events of all types)."""

    logits: Tensor
    labels: Tensor
    weights: Tensor
    group: Tensor
    request_time: Tensor
    history: Tensor

    def metrics(self, tasks: list[str], *, gauc: bool = True) -> RankingMetrics:
        """All metrics of these rows."""
        metrics = RankingMetrics(tasks, gauc=gauc)
        metrics.update(self.logits, self.labels, self.weights, self.group)
        return metrics


@torch.no_grad()
def score(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    *,
    tasks: int,
    bf16: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> Scored:
    """Scores of every row in eval mode; the mode of the model is put back."""
    was_training = model.training
    model.eval()
    logits: list[Tensor] = []
    rest: list[tuple[Tensor, ...]] = []
    try:
        for batch in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits.append(model(to_device(batch, device)).float())
            rest.append(_facts(batch))
            after_batch()
    finally:
        model.train(was_training)
    if not logits:
        return _nothing(tasks)
    labels, weights, group, time, history = (torch.cat(x) for x in zip(*rest, strict=True))
    return Scored(torch.cat(logits).cpu(), labels, weights, group, time, history)


def _facts(batch: Batch) -> tuple[Tensor, ...]:
    """Labels, weights, group, request time and history length of every row."""
    history = torch.zeros_like(batch.request_time)
    for events in batch.events.values():
        history = history + events.offsets[1:] - events.offsets[:-1]
    time = batch.request_time
    if batch.request is not None:
        time, history = time[batch.request], history[batch.request]
    return batch.labels, batch.weights, batch.group, time, history


def _nothing(tasks: int) -> Scored:
    floats, longs = torch.empty(0, tasks), torch.empty(0, dtype=torch.int64)
    return Scored(floats, floats, torch.empty(0), longs, longs, longs)


Metrics = Mapping[str, Mapping[str, Any]]  # task -> name -> value


def tasks_with_ne(*rivals: Metrics) -> list[str]:
    """Tasks of which any of those that are compared has an NE; in order, so that a mean over them
    is the same to the bit in every process."""
    known = (task for own in rivals for task, m in own.items() if m["ne"] is not None)
    return list(dict.fromkeys(known))


def mean_ne(metrics: Metrics, tasks: Iterable[str]) -> float | None:
    """What the best checkpoint and the best trial are chosen by: mean NE over `tasks`, the lower
    the better; None if one of them has none: it cannot be held against a rival that has it."""
    found = [metrics.get(task, {}).get("ne") for task in tasks]
    known: list[float] = [ne for ne in found if ne is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
