"""All metrics of all tasks, fed batch by batch: what evaluation reports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kunlun.metrics.auc import AUC
from kunlun.metrics.calibration import Calibration
from kunlun.metrics.gauc import GAUC
from kunlun.metrics.ne import LogLoss, NormalizedEntropy
from kunlun.metrics.score import ScoreMetric


class RankingMetrics(nn.Module):
    """NE, AUC, GAUC, log-loss and calibration of every task.

    auc_bins: binned AUC and no GAUC, with constant memory; None = exact. gauc: leave it out where
    nobody reads it, since it sorts twice.
    """

    def __init__(self, tasks: list[str], *, auc_bins: int | None = None, gauc: bool = True) -> None:
        super().__init__()
        self.tasks = tasks
        self.metrics = nn.ModuleList(nn.ModuleDict(_of_task(auc_bins, gauc)) for _ in tasks)

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor, group: Tensor) -> None:
        """logits, labels [B, tasks] (NaN = unknown), weights [B], group int64 [B]."""
        for task, metrics in enumerate(self.metrics):
            for metric in metrics.values():  # type: ignore[operator]
                metric.update(logits[:, task], labels[:, task], weights, group)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Task -> ne, auc, gauc, logloss, calibration (None if undefined), base_rate, rows;
        `undefined` gives the reasons, `gauc_groups` and `gauc_skipped` the groups."""
        nothing = torch.empty(0, len(self.tasks), device=self.metrics[0]["ne"].device)  # type: ignore[index]
        self.update(nothing, nothing, nothing[:, 0], nothing[:, 0].long())  # torchmetrics warns of
        # a compute() before any update, and its collectives need a tensor on every rank
        return {t: _read(m) for t, m in zip(self.tasks, self.metrics, strict=True)}

    def reset(self) -> None:
        """Forget all rows."""
        for metrics in self.metrics:
            for metric in metrics.values():  # type: ignore[operator]
                metric.reset()

    def calibration_bins(self) -> dict[str, list[dict[str, float | None]]]:
        """Task -> cells of the reliability plot."""
        return {
            t: m["calibration"].bins()  # type: ignore[index]
            for t, m in zip(self.tasks, self.metrics, strict=True)
        }


def _of_task(auc_bins: int | None, gauc: bool) -> dict[str, nn.Module]:
    metrics: dict[str, ScoreMetric] = {"ne": NormalizedEntropy(), "auc": AUC(bins=auc_bins)}
    if auc_bins is None and gauc:
        metrics["gauc"] = GAUC()
    return {**metrics, "logloss": LogLoss(), "calibration": Calibration()}


def _read(metrics: Any) -> dict[str, Any]:
    scores = {name: metric.compute() for name, metric in metrics.items()}
    found: dict[str, Any] = {name: score.value for name, score in scores.items()}
    found["base_rate"] = scores["logloss"].detail.get("base_rate")
    found["rows"] = int(scores["logloss"].detail.get("rows", 0))
    if "gauc" in scores:
        found["gauc_groups"] = int(scores["gauc"].detail.get("groups", 0))
        found["gauc_skipped"] = int(scores["gauc"].detail.get("skipped", 0))
    reasons = {name: s.reason for name, s in scores.items() if s.reason is not None}
    return {**found, "undefined": reasons} if reasons else found
