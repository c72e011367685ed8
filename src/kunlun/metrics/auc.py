"""Area under the ROC curve: the chance that a positive outscores a negative, ties counting half."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kunlun.metrics.score import Score, ScoreMetric, joined


class AUC(ScoreMetric):
    """Exact by default: keeps every row (9 bytes each) and sorts once, O(B log B).

    bins: for streams, keep only two histograms of the probability with that many cells; pairs
    within a cell count half, so that the error is at most half the share of such pairs.
    detail: positives, negatives (sums of weights).
    """

    higher_is_better = True
    logits: list[Tensor]
    labels: list[Tensor]
    weights: list[Tensor]
    cells: Tensor

    def __init__(self, bins: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bins is not None and bins < 2:
            raise ValueError(f"bins is {bins}, expected at least 2, or None for the exact area")
        self.bins = bins
        if bins is None:
            for name in ("logits", "labels", "weights"):
                self.add_state(name, [], dist_reduce_fx="cat")
        else:
            cells = torch.zeros(2, bins, dtype=torch.float64)
            self.add_state("cells", cells, dist_reduce_fx="sum")

    def add(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None) -> None:
        if self.bins is None:
            self.logits.append(logits.float())
            self.labels.append(labels.bool())
            self.weights.append(weights.float())
            return
        probability = logits.double().sigmoid().nan_to_num()
        cell = (probability * self.bins).long().clamp(max=self.bins - 1)
        w, y = weights.double(), labels.double()
        for row, mass in enumerate((w * y, w * (1 - y))):
            self.cells[row].index_add_(0, cell, mass)

    def score(self) -> Score:
        if self.bins is not None:
            return _area(self.cells[0], self.cells[1])
        return exact_auc(
            joined(self.logits, torch.float32),
            joined(self.labels, torch.bool),
            joined(self.weights, torch.float32),
        )


def exact_auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Score:
    """Weighted AUC of rows [B]; scores in any monotone unit, labels in {0, 1}."""
    order = torch.argsort(scores)
    scores, y = scores[order], labels[order].double()
    w = torch.ones_like(y) if weights is None else weights[order].double()
    first = torch.ones_like(scores, dtype=torch.bool)
    first[1:] = scores[1:] != scores[:-1]
    cell = torch.cumsum(first, 0) - 1  # rows with equal scores share a cell
    count = int(cell[-1]) + 1 if len(cell) else 0
    positive = y.new_zeros(count).index_add_(0, cell, w * y)
    negative = y.new_zeros(count).index_add_(0, cell, w * (1 - y))
    return _area(positive, negative)


def _area(positive: Tensor, negative: Tensor) -> Score:
    """Mass of both classes per cell of rising score -> AUC."""
    n_positive, n_negative = float(positive.sum()), float(negative.sum())
    detail = {"positives": n_positive, "negatives": n_negative}
    if n_positive == 0 and n_negative == 0:
        return Score(None, "no rows with a known label", detail)
    if n_positive == 0 or n_negative == 0:
        only = "negative" if n_positive == 0 else "positive"
        return Score(None, f"one class only (all {only})", detail)
    below = torch.cumsum(negative, 0) - 0.5 * negative
    return Score(float((positive * below).sum()) / (n_positive * n_negative), detail=detail)
