"""AUC within groups (users, requests, page loads), averaged by impressions.

    GAUC = sum over groups g with both classes of W_g AUC_g / sum of W_g,  W_g = weight of g's rows

Groups with one class have no AUC; they are skipped and counted. GAUC by user punishes a model that
reads the user's recent labels (it shifts a user's scores in time); the request is the fairer group
then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kunlun.metrics.score import Score, ScoreMetric, joined


class GAUC(ScoreMetric):
    """Keeps every row (17 bytes each). `update` needs groups, int64 [B].

    detail: groups (used), skipped (one class only), covered (share of the weight that counted).
    """

    higher_is_better = True
    needs_groups = True
    logits: list[Tensor]
    labels: list[Tensor]
    weights: list[Tensor]
    groups: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("logits", "labels", "weights", "groups"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def add(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None) -> None:
        assert groups is not None  # needs_groups
        self.logits.append(logits.float())
        self.labels.append(labels.bool())
        self.weights.append(weights.float())
        self.groups.append(groups.long())

    def score(self) -> Score:
        return grouped_auc(
            joined(self.logits, torch.float32),
            joined(self.labels, torch.bool),
            joined(self.groups, torch.int64),
            joined(self.weights, torch.float32),
        )


def grouped_auc(
    scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None
) -> Score:
    """GAUC of rows [B]: ordered once by (group, score), then segment sums only, O(B log B)."""
    if not len(scores):
        return Score(None, "no rows with a known label")
    order = torch.argsort(scores)
    order = order[torch.argsort(groups[order], stable=True)]
    scores, groups, y = scores[order], groups[order], labels[order].double()
    w = torch.ones_like(y) if weights is None else weights[order].double()

    new_group = torch.ones_like(y, dtype=torch.bool)
    new_group[1:] = groups[1:] != groups[:-1]
    new_cell = new_group.clone()  # a cell: rows of one group with equal scores
    new_cell[1:] |= scores[1:] != scores[:-1]
    cell = torch.cumsum(new_cell, 0) - 1
    group_of_cell = (torch.cumsum(new_group, 0) - 1)[new_cell]
    n_cells, n_groups = len(group_of_cell), int(new_group.sum())

    positive = y.new_zeros(n_cells).index_add_(0, cell, w * y)
    negative = y.new_zeros(n_cells).index_add_(0, cell, w * (1 - y))
    p = y.new_zeros(n_groups).index_add_(0, group_of_cell, positive)
    n = y.new_zeros(n_groups).index_add_(0, group_of_cell, negative)
    before_group = torch.cumsum(n, 0) - n
    below = torch.cumsum(negative, 0) - 0.5 * negative - before_group[group_of_cell]
    wins = y.new_zeros(n_groups).index_add_(0, group_of_cell, positive * below)

    both = (p > 0) & (n > 0)
    mass = p + n
    detail = {
        "groups": float(both.sum()),
        "skipped": float((~both).sum()),
        "covered": float(mass[both].sum() / mass.sum()),
    }
    if not bool(both.any()):
        return Score(None, f"none of the {n_groups} groups has both classes", detail)
    each = wins[both] / (p[both] * n[both])
    return Score(float((each * mass[both]).sum() / mass[both].sum()), detail=detail)
