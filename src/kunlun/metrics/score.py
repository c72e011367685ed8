"""What every metric of the house shares: its inputs, its answer, and when there is none.

Shapes: B rows of one task.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


@dataclass  # not frozen: torchmetrics copies what compute() returns field by field
class Score:
    """A number, or None with the reason why there is none; never a made-up 0.5.

    detail: what a reader needs to judge the number (base rate, groups used and skipped, ...).
    """

    value: float | None
    reason: str | None = None
    detail: dict[str, float] = field(default_factory=dict)


class ScoreMetric(Metric):
    """A metric of one binary task. Ranks are merged by summing or concatenating states.

    update(logits [B], labels [B] in {0, 1} or NaN = unknown, weights [B] or None, groups or None):
    logits before the sigmoid, any float type. Unknown labels and rows of weight 0 do not count.
    compute() -> Score; undefined as soon as one counted prediction is NaN.
    """

    full_state_update = False
    is_differentiable = False
    needs_groups = False
    bad: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("bad", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Add rows; see the class. Raises ValueError if shapes differ or groups are missing."""
        if weights is None:
            weights = torch.ones_like(labels, dtype=torch.float32)
        if self.needs_groups and groups is None:
            raise ValueError(f"{type(self).__name__} needs groups, int64 [B]; got None")
        for name, value in (("labels", labels), ("weights", weights), ("groups", groups)):
            if value is not None and value.shape != logits.shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, expected that of the logits, "
                    f"{tuple(logits.shape)}"
                )
        counted = ~torch.isnan(labels) & (weights != 0)
        logits, labels, weights = logits[counted], labels[counted], weights[counted]
        self.bad += torch.isnan(logits).sum()
        self.add(logits, labels, weights, groups[counted] if groups is not None else None)

    def compute(self) -> Score:
        """The score over everything seen by all ranks."""
        if int(self.bad):
            return Score(None, f"{int(self.bad)} predictions are NaN")
        return self.score()

    @abstractmethod
    def add(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor | None) -> None:
        """Accumulate counted rows."""

    @abstractmethod
    def score(self) -> Score:
        """The score of the accumulated states."""


def joined(state: Any, like: torch.dtype) -> Tensor:
    """A "cat" state as one tensor: torchmetrics keeps a list, or a tensor after a reduction."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0, dtype=like)
