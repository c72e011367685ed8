"""Exponential average of the dense weights; the tables are left alone (too large, too sparse)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """average = d * average + (1 - d) * weight, once a step; decay=None does nothing.

    d rises to `decay`, as (1 + step) / (10 + step): the random start is soon forgotten.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float | None) -> None:
        self.decay = decay
        self.weights = dict(weights) if decay is not None else {}
        self.means = {name: w.detach().clone() for name, w in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after an optimizer step, the first of which is 0."""
        if self.decay is not None:
            decay = min(self.decay, (1 + step) / (10 + step))
            means, weights = list(self.means.values()), list(self.weights.values())
            torch._foreach_lerp_(means, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        own = {name: w.detach().clone() for name, w in self.weights.items()}
        self._copy(self.means)
        try:
            yield
        finally:
            self._copy(own)

    def load(self, means: dict[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, mean in means.items():
            self.means[name].copy_(mean)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
