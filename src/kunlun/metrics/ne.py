"""Log-loss and normalised entropy, from four sums a task.

    log-loss = mean of -(y ln p + (1 - y) ln(1 - p))            nats per row
    entropy  = -(r ln r + (1 - r) ln(1 - r)),  r = mean y       of the evaluated rows themselves
    NE       = log-loss / entropy                               1 = no better than the base rate

Every mean is weighted by the sample weights. Sums are float64: float32 stops counting at 2^24.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.metrics.score import Score, ScoreMetric


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Per-row log-loss in float64 nats; labels may be probabilities (the expected loss then).

    An infinite logit that is right costs 0, one that is wrong costs infinity.
    """
    z, y = logits.double(), labels.double()
    positive = torch.where(y == 0, 0.0, y * F.softplus(-z))
    negative = torch.where(y == 1, 0.0, (1 - y) * F.softplus(z))
    return positive + negative


def sums(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """logits, labels [B, tasks] (NaN = unknown), weights [B] -> float64 [tasks, 4].

    Columns: weighted loss, weight, weighted positives, rows. Adding them merges sets of rows.
    """
    known = ~torch.isnan(labels) & (weights != 0)[:, None]
    y = torch.where(known, labels, 0.0).double()
    w = known * weights.double()[:, None]
    loss = torch.where(known, cross_entropy(logits, y), 0.0) * w
    return torch.stack([loss.sum(0), w.sum(0), (y * w).sum(0), known.double().sum(0)], dim=1)


def entropy(rate: float) -> float:
    """Of a coin with that probability, in nats."""
    if rate <= 0.0 or rate >= 1.0:
        return 0.0
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def log_loss(row: list[float]) -> Score:
    """One row of `sums` -> mean log-loss in nats."""
    loss, weight, positive, rows = row
    if weight == 0:
        return Score(None, "no rows with a known label")
    if not math.isfinite(loss):
        return Score(None, "an infinitely confident prediction was wrong")
    return Score(loss / weight, detail={"base_rate": positive / weight, "rows": rows})


def normalized_entropy(row: list[float]) -> Score:
    """One row of `sums` -> NE."""
    mean = log_loss(row)
    if mean.value is None:
        return mean
    base = entropy(mean.detail["base_rate"])
    if base == 0.0:
        only = "positive" if mean.detail["base_rate"] >= 1.0 else "negative"
        return Score(None, f"one class only (all {only})", mean.detail)
    return Score(mean.value / base, detail=mean.detail)


class _Sums(ScoreMetric):
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(1, 4, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None) -> None:
        self.total += sums(logits[:, None], labels[:, None], weights)


class LogLoss(_Sums):
    """Mean log-loss in nats; detail: base_rate, rows."""

    higher_is_better = False

    def score(self) -> Score:
        return log_loss(self.total[0].tolist())


class NormalizedEntropy(_Sums):
    """Log-loss over the entropy of the seen rows' own base rate; detail: base_rate, rows.

    Compare NE only between models scored on the same rows: another base rate is another ruler.
    """

    higher_is_better = False

    def score(self) -> Score:
        return normalized_entropy(self.total[0].tolist())
