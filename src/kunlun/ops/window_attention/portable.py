"""Windowed softmax attention with torch alone: O(L * window) time and memory, on any device.

Long samples are cut into blocks (see kunlun.ops.window_attention.blocks), the others share tiles.
A tile holds samples of one length; it is walked in slices of query rows, each against just the
keys its band can reach, cut at the sample's ends. So a window wider than the sequences costs
what full attention costs, and short sequences are one dense block. Only the log-sum-exp of each
row is kept. Legend: N = G * Hkv products of a tile, R query rows (of all heads that share a key
head), K key rows of a slice, D width. Scores lie as [N, K, R]: reductions over keys then run
along whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from kunlun.ops.softmax import (
    LOG2_E,
    exponentiate_,
    log2_sum_,
    padding_bias,
    sum_over_keys,
)
from kunlun.ops.tiles import (
    SCORES,
    Packing,
    bucket,
    compute_dtype,
    fold,
    group,
    join,
    pack,
    packed,
    product,
    unpacked,
)
from kunlun.ops.window_attention import blocks
from kunlun.ops.window_attention.blocks import Blocks, band, worth

_EXACT = 64  # a padded key has to be masked, which costs more than a smaller tile saves
_MIN_SLICE, _MAX_SLICE = 64, 128  # query rows; about the window, so that half the keys are used


@lru_cache(maxsize=16)
def _plan(
    offsets: tuple[int, ...],
    heads: int,
    kv_heads: int,
    window: int,
    causal: bool,
    device: torch.device,
) -> tuple[Packing, Packing, list[Blocks]]:
    """Tiles of queries and keys, and the long samples. Layers and a batch's backward share it."""
    starts = torch.tensor(offsets)
    share = heads // kv_heads
    cut = worth(starts.diff(), heads, window, causal)
    long = [
        Blocks(offsets[i], offsets[i + 1] - offsets[i], kv_heads, share, window, causal)
        for i in cut.nonzero().flatten().tolist()
    ]
    lengths = bucket(starts.diff(), exact=_EXACT).masked_fill_(cut, 0)
    some = (lengths > 0).nonzero().flatten()
    groups = []
    for length, samples in group(lengths[some]):
        rows = min(length, _slice_rows(window))
        scores = heads * rows * min(length, rows + 2 * window)
        groups.append((some[samples], length, max(1, SCORES // scores)))
    # Offsets begin at 0 and end at L, so tiles and long samples together cover every row: results
    # need no zeros to begin with.
    queries = replace(pack(starts, heads, groups, device), complete=True)
    if kv_heads == heads:
        return queries, queries, long
    return queries, replace(pack(starts, kv_heads, groups, device), complete=True), long


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: tuple[int, ...],
    window: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """([L, H, D], log2-sum-exp2 [L, H] in the dtype we compute in)."""
    heads, kv_heads, share = q.shape[1], k.shape[1], q.shape[1] // k.shape[1]
    window = _reach(offsets, window)
    to_q, to_kv, long = _plan(offsets, heads, kv_heads, window, causal, q.device)
    q_rows, k_rows, v_rows = packed(q), packed(k), packed(v)
    out = to_q.result(q, q.shape[2])
    lse = to_q.result(q, 1, compute_dtype(q.dtype))
    for q_tile, kv_tile in zip(to_q.tiles, to_kv.tiles, strict=True):
        queries = q_tile.load(q_rows)
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        bias = padding_bias(kv_tile, keys)
        results, sums = [], []
        for part, reach in _slices(q_tile.length, window, causal):
            scores = product(keys[:, reach], fold(queries, part, share).mT, scale * LOG2_E)
            _mask_(scores, part, reach, window, causal, bias)
            top = scores.amax(1, keepdim=True)
            total = sum_over_keys(exponentiate_(scores, top))
            results.append(product(scores.mT, values[:, reach]).div_(total.mT))
            sums.append(log2_sum_(top, total).mT)
        q_tile.save(join(results, len(queries)), out)
        q_tile.save(join(sums, len(queries)), lse)
    result, sum_rows = unpacked(out, *q.shape), unpacked(lse, *q.shape[:2])
    for sample in long:
        blocks.forward(sample, q, k, v, scale, result, sum_rows[..., None])
    return result, sum_rows


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: tuple[int, ...],
    window: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from grad [L, H, D]; the weights are made again from the log-sum-exp."""
    heads, kv_heads, share = q.shape[1], k.shape[1], q.shape[1] // k.shape[1]
    window = _reach(offsets, window)
    to_q, to_kv, long = _plan(offsets, heads, kv_heads, window, causal, q.device)
    delta = (grad.to(lse.dtype) * out).sum(-1)
    q_rows, k_rows, v_rows, grad_rows = packed(q), packed(k), packed(v), packed(grad)
    stat_rows = packed(torch.stack((lse, delta), dim=-1))
    width = q.shape[2]
    dq, dk, dv = to_q.result(q, width), to_kv.result(k, width), to_kv.result(v, width)
    for q_tile, kv_tile in zip(to_q.tiles, to_kv.tiles, strict=True):
        queries = q_tile.load(q_rows)
        # Zero gradients silence padded queries, whatever row they repeat.
        grads, stats = (q_tile.load(x, zero_padding=True) for x in (grad_rows, stat_rows))
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        bias = padding_bias(kv_tile, keys)
        parts: list[Tensor] = []
        for part, reach in _slices(q_tile.length, window, causal):
            q_part, grad_part = fold(queries, part, share), fold(grads, part, share)
            weights = product(keys[:, reach], q_part.mT, scale * LOG2_E)
            _mask_(weights, part, reach, window, causal, bias)
            row_lse, row_delta = fold(stats, part, share).mT.contiguous().split(1, dim=1)
            exponentiate_(weights, row_lse)
            slope = product(values[:, reach], grad_part.mT)
            slope.sub_(row_delta).mul_(weights)
            parts.append(product(slope.mT, keys[:, reach], scale))
            dk_part, dv_part = product(slope, q_part, scale), product(weights, grad_part)
            if part.stop - part.start == q_tile.length:
                dk_tile, dv_tile = dk_part, dv_part
                continue
            if part.start == 0:
                dk_tile, dv_tile = torch.zeros_like(keys), torch.zeros_like(values)
            dk_tile[:, reach] += dk_part
            dv_tile[:, reach] += dv_part
        q_tile.save(join(parts, len(queries)), dq)
        kv_tile.save(dk_tile, dk)
        kv_tile.save(dv_tile, dv)
    results = unpacked(dq, *q.shape), unpacked(dk, *k.shape), unpacked(dv, *v.shape)
    for sample in long:
        blocks.backward(sample, grad, q, k, v, lse[..., None], delta[..., None], scale, results)
    return results


def _reach(offsets: tuple[int, ...], window: int) -> int:
    """The window, or the longest sample if that is less: then windows of any size share plans."""
    return min(window, max((b - a for a, b in pairwise(offsets)), default=0))


def _slice_rows(window: int) -> int:
    return min(max(window, _MIN_SLICE), _MAX_SLICE)


def _slices(length: int, window: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """(query rows, key rows they reach), covering every query row and every key row."""
    step = _slice_rows(window)
    for start in range(0, length, step):
        stop = min(start + step, length)
        last = stop if causal else min(stop + window, length)
        yield slice(start, stop), slice(max(start - window, 0), last)


def _mask_(
    scores: Tensor,
    part: slice,
    reach: slice,
    window: int,
    causal: bool,
    bias: Tensor | None,
) -> None:
    """Bans what lies outside the band or the sample, in scores [N, K, R]."""
    rows, keys = part.stop - part.start, reach.stop - reach.start
    if causal or rows - 1 + part.start - reach.start > window or keys - 1 > window:
        outside = band(rows, keys, part.start - reach.start, window, causal, scores.device)
        scores.view(len(scores), keys, -1, rows).add_(outside.to(scores.dtype))
    if bias is not None:
        scores.add_(bias[:, reach])
