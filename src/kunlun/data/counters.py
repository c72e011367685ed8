"""Counters: smoothed target rates per key from impressions strictly before the request.

Prequential: the impressions of validation and test days count too once their time (plus delay)
has passed, and so do impressions outside the split; impressions of one moment never see each
other. O(n log n) a counter, vectorised.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kunlun.data.encode import clock, is_clock, keys, measure
from kunlun.data.past import Past
from kunlun.data.source import Log
from kunlun.data.values import Float64, Int64, canonical, factorise, times
from kunlun.errors import SchemaError
from kunlun.features.schema import Feature


class Tally(NamedTuple):
    """Of each query the labelled impressions of its key before it, and the positive ones; [n]."""

    known: Float64
    positives: Float64

    def rate(self, strength: float, prior: float) -> Float64:
        """(positives + strength * prior) / (count + strength); prior where both are 0."""
        total = self.known + strength
        smooth = self.positives + strength * prior
        rate: Float64 = np.divide(smooth, total, out=np.full(len(total), prior), where=total > 0)
        return rate


def tally(key: Int64, time: Int64, label: Float64, delay_ms: int = 0) -> Tally:
    """Count for every impression [n] the earlier labelled ones (time < its time - delay).

    key int64 [n] >= 0, time int64 [n] ms, label float64 [n] in {0, 1, NaN}.
    """
    known = ~np.isnan(label)
    past = Past(key[known], time[known])
    sums = np.concatenate([[0.0], np.cumsum(label[known][past.order])])
    end, start = past.before(key, time - delay_ms), past.starts(key)
    return Tally((end - start).astype(np.float64), sums[end] - sums[start])


def combined_key(log: Log, where: str, feature: Feature) -> Int64:
    """int64 [N]: one code for each combination of keys; null is a value of its own."""
    key = np.zeros(len(log.time), np.int64)
    for name in feature.keys:
        codes = _codes(log, where, name)
        key = key * (int(codes.max(initial=0)) + 1) + codes
        key = np.unique(key, return_inverse=True)[1].astype(np.int64)  # stays below N
    return key


def _codes(log: Log, where: str, name: str) -> NDArray[np.int64]:
    """int64 [N] >= 0 of one key: a feature's raw value, or a raw impressions column."""
    feature = log.schema.features.get(name)
    if feature is None:
        column = log.column("context", name)
        with column.blame():
            return factorise(canonical(column.values))[0].astype(np.int64) + 1
    if feature.kind in ("multi", "counter"):
        raise SchemaError(f"{where}.keys: '{name}' is {feature.kind}; a key must be one value")
    column = log.of(name, feature)
    with column.blame():
        if feature.kind == "categorical":
            codes = factorise(keys(feature, column.values)[0])[0]
        elif is_clock(feature):
            at = times(column.values, log.unit(feature, column), feature.utc_offset)
            codes = clock(feature, at)
        elif feature.kind == "numeric":
            x = measure(feature, column.values)
            codes = np.unique(x, return_inverse=True)[1].astype(np.int32)
        else:
            raise SchemaError(f"{where}.keys: '{name}' depends on the request; use another key")
    rows = {"user": log.user, "item": log.item}.get(feature.role)
    shifted = codes.astype(np.int64) + 1
    return shifted if rows is None else shifted[rows]
