"""Tokens -> logits, and the loss that every model of the house shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunlun.ops import gelu_approx


class Head(nn.Module):
    """One two-layer MLP a task over the flattened tokens: [B, N, D] -> float32 [B, tasks].

    FLOPs: 2 B hidden tasks (N D + 1).
    """

    def __init__(self, tokens: int, dim: int, hidden: int, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.up = nn.Linear(tokens * dim, tasks * hidden)
        self.down = nn.Parameter(torch.randn(tasks, hidden) * hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(tasks))

    @torch.no_grad()
    def start_at(self, rates: list[float]) -> None:
        """Begin at each task's base rate, so that no step is spent on finding it."""
        self.bias.copy_(torch.logit(torch.tensor(rates), eps=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> logits float32 [B, tasks]."""
        hidden = gelu_approx(self.up(x.flatten(1))).float()
        hidden = hidden.view(x.shape[0], self.tasks, self.down.shape[1])
        return (hidden * self.down).sum(-1) + self.bias

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples; the last product is element-wise and not counted."""
        return 2 * rows * self.up.weight.numel()


def multi_task_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, task_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted binary cross-entropy; an unknown label (NaN) neither counts nor gets a gradient.

    logits, labels float32 [B, tasks], weights float32 [B], task_weights float32 [tasks]
    -> (scalar sum over tasks of the weighted mean, per-task means [tasks]).
    """
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, 0.0)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    mass = known * weights[:, None]
    mean = (each * mass).sum(0) / mass.sum(0).clamp(min=1e-12)
    return (mean * task_weights).sum(), mean.detach()
