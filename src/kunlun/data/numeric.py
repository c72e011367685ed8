"""Numbers -> model inputs by fitted scaling or quantile buckets; NaN and infinity are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kunlun.data.values import Float64, Int32
from kunlun.features.schema import FIRST_VALUE, MISSING

Float32 = NDArray[np.float32]
Transform = Literal["none", "log1p", "standardise", "quantile"]
KNOTS = 257  # of the empirical distribution kept by "quantile"


@dataclass(frozen=True)
class Scaler:
    """none: x. log1p: sign(x) log(1 + |x|). standardise: (x - mean) / deviation, on train.

    quantile: train's distribution function through `knots`, stretched to -1..1. Missing gives 0.
    """

    transform: Transform
    mean: float = 0.0
    deviation: float = 1.0
    knots: list[float] | None = None  # increasing values
    levels: list[float] | None = None  # where they lie in the distribution, -1..1

    @staticmethod
    def fit(transform: Transform, x: Float64) -> Scaler:
        """Fit on the finite values of x [n]; none at all leaves values as they are."""
        x = x[np.isfinite(x)]
        if transform == "standardise" and len(x):
            deviation = float(x.std())
            return Scaler(transform, float(x.mean()), deviation if deviation > 1e-12 else 1.0)
        if transform == "quantile":
            points = np.quantile(x, np.linspace(0, 1, KNOTS)) if len(x) else np.zeros(1)
            knots = np.unique(points)
            below, upto = (np.searchsorted(points, knots, side=s) for s in ("left", "right"))
            middle = (below + upto - 1) / max(len(points) - 1, 1) - 1.0  # a tie takes its middle
            return Scaler(transform, knots=knots.tolist(), levels=middle.tolist())
        return Scaler(transform)

    def encode(self, x: Float64) -> Float32:
        """float64 [n] -> float32 [n], finite."""
        finite = np.isfinite(x)
        x = np.where(finite, x, 0.0)
        if self.transform == "log1p":
            x = np.sign(x) * np.log1p(np.abs(x))
        elif self.transform == "standardise":
            x = (x - self.mean) / self.deviation
        elif self.transform == "quantile":
            assert self.knots is not None
            assert self.levels is not None
            x = np.interp(x, self.knots, self.levels)
        limit = np.finfo(np.float32).max
        return np.where(finite, np.clip(x, -limit, limit), 0.0).astype(np.float32)


@dataclass(frozen=True)
class Buckets:
    """Quantile buckets: id 2 + number of `edges` at or below x; 0 where x is missing."""

    edges: list[float]

    @staticmethod
    def fit(buckets: int, x: Float64) -> Buckets:
        """Up to `buckets` equally filled buckets of finite x [n]; equal values stay together."""
        x = x[np.isfinite(x)]
        inner = np.linspace(0, 1, buckets + 1)[1:-1]
        return Buckets(np.unique(np.quantile(x, inner)).tolist() if len(x) else [])

    def encode(self, x: Float64) -> Int32:
        """float64 [n] -> int32 ids [n]."""
        found = np.searchsorted(np.array(self.edges, np.float64), x, side="right") + FIRST_VALUE
        return np.where(np.isfinite(x), found, MISSING).astype(np.int32)
