"""Counters: smoothed target rates per key from what lies strictly before the request.

Of impressions they are prequential: those of validation and test days count too once their time
(plus delay) has passed, and so do those outside the split; impressions of one moment never see
each other. Of events they count list histories as well. O(n log n) each, vectorised.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kunlun.data.encode import clock, is_clock, keys, measure
from kunlun.data.event_store import EventTable
from kunlun.data.past import Past
from kunlun.data.source import Log
from kunlun.data.times import times
from kunlun.data.values import Float64, Int64, canonical, factorise
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


def tally_events(
    log: Log, where: str, feature: Feature, all_events: EventTable, positive: EventTable
) -> Tally:
    """Count for every impression [N] the events of its keys with time < its time - delay.

    The lists that seed both types may be cut apart: `known` is at least the positives.
    """
    size = 1
    user_code, item_code = np.zeros(len(log.users), np.int64), np.zeros(len(log.items), np.int64)
    for name in feature.keys:
        codes = _entity_codes(log, where, name)
        wide = int(codes.max(initial=0)) + 1
        if log.schema.features[name].role == "user":
            user_code, item_code = user_code * wide + codes, item_code * wide
        else:
            user_code, item_code = user_code * wide, item_code * wide + codes
        size *= wide
    if size >= 2**40:
        raise SchemaError(f"{where}.keys: {size} combinations are too many; use fewer keys")
    before = log.time - round(feature.delay * 1000)
    query = user_code[log.user] + item_code[log.item]
    found = []
    for store in (all_events, positive):
        past = Past(user_code[store.user] + item_code[store.item], store.time)
        found.append((past.before(query, before) - past.starts(query)).astype(np.float64))
    return Tally(np.maximum(*found), found[1])


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
    codes = _entity_codes(log, where, name)
    rows = {"user": log.user, "item": log.item}.get(feature.role)
    return codes if rows is None else codes[rows]


def _entity_codes(log: Log, where: str, name: str) -> Int64:
    """int64 >= 0 of a feature's raw values, one a position of its raw column; null is 0."""
    feature = log.schema.features[name]
    if feature.kind in ("multi", "counter"):
        raise SchemaError(f"{where}.keys: '{name}' is {feature.kind}; a key must be one value")
    column = log.of(name, feature)
    with column.blame():
        if feature.kind == "categorical":
            codes = factorise(keys(feature, column.values)[0])[0]
        elif is_clock(feature):
            at = times(column.values, *column.table.form)
            codes = clock(feature, at)
        elif feature.kind == "numeric":
            x = measure(feature, column.values)
            codes = np.unique(x, return_inverse=True)[1].astype(np.int32)
        else:
            raise SchemaError(f"{where}.keys: '{name}' depends on the request; use another key")
    return codes.astype(np.int64) + 1
