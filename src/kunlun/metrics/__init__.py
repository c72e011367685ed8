"""Metrics of click prediction: float64 states, merged by sums, undefined instead of invented."""

from kunlun.metrics.auc import AUC
from kunlun.metrics.calibration import Calibration
from kunlun.metrics.gauc import GAUC
from kunlun.metrics.ne import LogLoss, NormalizedEntropy
from kunlun.metrics.ranking import RankingMetrics
from kunlun.metrics.score import Score

__all__ = [
    "AUC",
    "GAUC",
    "Calibration",
    "LogLoss",
    "NormalizedEntropy",
    "RankingMetrics",
    "Score",
]
