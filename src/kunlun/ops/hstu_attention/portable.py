"""HSTU's attention with torch alone: one tile of scores at a time, on any device.

A tile holds samples of one length; it is walked in slices of query rows, each against the keys
before them (inside the window). Scores are made, biased, activated and used while they are in
cache; the backward makes them again. Padded keys score what they like: their values are zero,
and so is the gradient of their scores. Legend: G samples of a tile, H heads, R query rows and
K key rows of a slice, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.tiles import (
    SCORES,
    Packing,
    bucket,
    group,
    join,
    pack,
    packed,
    product,
    unpacked,
    whole,
)
from kunlun.ops.time_buckets import time_buckets

_MIN_SLICE, _MAX_SLICE = 32, 128  # query rows of a slice: the causal half is saved by slices


class Settings(NamedTuple):
    """See kunlun.ops.hstu_attention."""

    window: int
    scale: float
    out_scale: float


@lru_cache(maxsize=16)
def _plan(
    offsets: tuple[int, ...], heads: int, window: int, device: torch.device
) -> tuple[Packing, Packing]:
    """The tiles of rows with heads, and of what is the same for all heads."""
    starts = torch.tensor(offsets)
    lengths = bucket(starts.diff())
    some = (lengths > 0).nonzero().flatten()
    groups = []
    for length, samples in group(lengths[some]):
        rows = min(length, _slice_rows(length, heads))
        scores = heads * rows * min(length, rows + window)
        groups.append((some[samples], length, max(1, SCORES // scores)))
    return pack(starts, heads, groups, device), pack(starts, 1, groups, device)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: tuple[int, ...],
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    settings: Settings,
) -> Tensor:
    """[L, H, D]; see kunlun.ops.hstu_attention."""
    heads = q.shape[1]
    plan, shared = _plan(offsets, heads, settings.window, q.device)
    rows, moments = [packed(x) for x in (q, k, v)], time[:, None]
    out = plan.result(q, q.shape[2])
    for tile, moment in zip(plan.tiles, shared.tiles, strict=True):
        queries, keys, values = (tile.load(x, zero_padding=True) for x in rows)
        bias = _Bias(moment.load(moments), position_bias, time_bias, queries.dtype)
        results = []
        for part, reach in _slices(tile.length, heads, settings.window):
            scores = product(queries[:, part], keys[:, reach].mT, settings.scale)
            bias.add_(scores, part, reach)
            ACTIVATIONS["silu"].forward_(whole(scores))
            _mask_(scores, part, reach, settings.window)
            results.append(product(scores, values[:, reach], settings.out_scale))
        tile.save(join(results, len(queries)), out)
    return unpacked(out, *q.shape)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: tuple[int, ...],
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dposition_bias, dtime_bias) from grad [L, H, D]; scores are made again."""
    heads, width = q.shape[1:]
    window, scale, out_scale = settings
    plan, shared = _plan(offsets, heads, window, q.device)
    rows, moments = [packed(x) for x in (q, k, v, grad)], time[:, None]
    dq, dk, dv = (plan.result(x, width) for x in (q, k, v))
    d_position, d_time = (
        torch.zeros_like(t, dtype=torch.float64) for t in (position_bias, time_bias)
    )
    for tile, moment in zip(plan.tiles, shared.tiles, strict=True):
        # Zero values and gradients silence padding: the slopes of its scores vanish.
        queries, keys, values, grads = (tile.load(x, zero_padding=True) for x in rows)
        bias = _Bias(moment.load(moments), position_bias, time_bias, queries.dtype)
        results = []
        dk_tile, dv_tile = torch.zeros_like(keys), torch.zeros_like(values)
        for part, reach in _slices(tile.length, heads, window):
            q_part, grad_part = queries[:, part], grads[:, part]
            weights = product(q_part, keys[:, reach].mT, scale)
            bias.add_(weights, part, reach)
            slope = product(grad_part, values[:, reach].mT, out_scale)
            ACTIVATIONS["silu"].backward_(whole(weights), whole(slope))
            for scores in (weights, slope):
                _mask_(scores, part, reach, window)
            results.append(product(slope, keys[:, reach], scale))
            dk_tile[:, reach] += product(slope.mT, q_part, scale)
            dv_tile[:, reach] += product(weights.mT, grad_part, out_scale)
            bias.collect(slope, part, reach, d_position, d_time)
        tile.save(join(results, len(queries)), dq)
        tile.save(dk_tile, dk)
        tile.save(dv_tile, dv)
    tables = d_position.to(position_bias.dtype), d_time.to(time_bias.dtype)
    return unpacked(dq, *q.shape), unpacked(dk, *k.shape), unpacked(dv, *v.shape), *tables


class _Bias:
    """The relative biases of one tile; the same for all heads of a sample.

    moments: [G, T, 1] seconds.
    """

    def __init__(
        self, moments: Tensor, position_bias: Tensor, time_bias: Tensor, dtype: torch.dtype
    ) -> None:
        self.moments = moments
        self.position_bias, self.time_bias = position_bias.to(dtype), time_bias.to(dtype)

    def add_(self, scores: Tensor, part: slice, reach: slice) -> None:
        """rab to scores [G * H, R, K]."""
        by_time = self._by_time(part, reach)
        bias = self.time_bias.index_select(0, by_time.flatten()).view(by_time.shape)
        by_position = _by_position(part, reach, len(self.position_bias), scores.device)
        bias += self.position_bias.index_select(0, by_position.flatten()).view(by_position.shape)
        scores.view(len(bias), -1, *bias.shape[1:]).add_(bias[:, None])

    def collect(
        self, slope: Tensor, part: slice, reach: slice, d_position: Tensor, d_time: Tensor
    ) -> None:
        """The tables' share of slope [G * H, R, K], added to float64 sums."""
        by_time = self._by_time(part, reach)
        of_pairs = slope.view(len(by_time), -1, *by_time.shape[1:]).sum(1)
        d_time.index_add_(0, by_time.flatten(), of_pairs.flatten().double())
        by_position = _by_position(part, reach, len(d_position), slope.device)
        d_position.index_add_(0, by_position.flatten(), of_pairs.sum(0).flatten().double())

    def _by_time(self, part: slice, reach: slice) -> Tensor:
        """int32 [G, R, K]."""
        gap = (self.moments[:, part] - self.moments[:, reach].mT).abs_()
        return time_buckets(gap, len(self.time_bias))


def _by_position(part: slice, reach: slice, buckets: int, device: torch.device) -> Tensor:
    """int64 [R, K]: rows between query and key, at most buckets - 1."""
    query = torch.arange(part.start, part.stop, device=device)
    key = torch.arange(reach.start, reach.stop, device=device)
    return (query[:, None] - key).clamp_(0, buckets - 1)


def _slice_rows(length: int, heads: int) -> int:
    """Query rows of a slice of a sample that fills its tile alone."""
    return min(max(SCORES // (heads * length), _MIN_SLICE), _MAX_SLICE)


def _slices(length: int, heads: int, window: int) -> Iterator[tuple[slice, slice]]:
    """(query rows, the key rows they may read), covering every row."""
    step = _slice_rows(length, heads)
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), slice(max(start - window, 0), stop)


def _mask_(scores: Tensor, part: slice, reach: slice, window: int) -> None:
    """Zero in scores [N, R, K] what is after the query row or outside the window."""
    rows, keys = part.stop - part.start, reach.stop - reach.start
    shift = part.start - reach.start
    scores.masked_fill_(_outside(rows, keys, shift, min(window, keys), scores.device), 0)


@lru_cache(maxsize=256)
def _outside(rows: int, keys: int, shift: int, window: int, device: torch.device) -> Tensor:
    """bool [R, K]; query row i stands at key row i + shift."""
    behind = torch.arange(rows)[:, None] + shift - torch.arange(keys)
    return ((behind < 0) | (behind > window)).to(device)
