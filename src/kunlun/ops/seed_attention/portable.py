"""Seed attention with torch alone: tiles of equally long samples, long ones walked in slices.

Legend: N = G * H products of a tile, K key rows of a slice, S seeds, D width. Scores lie as
[N, K, S]: reductions over keys then run along whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from kunlun.ops.softmax import max_over_keys, padding_bias
from kunlun.ops.tiles import SCORES, Packing, bucket, compute_dtype, group, pack, packed, product

_MIN_KEYS = 64  # of a slice through one long sample; thinner products waste the core


@lru_cache(maxsize=16)
def _plan(
    offsets: tuple[int, ...], seeds: int, heads: int, device: torch.device
) -> tuple[Packing, Packing]:
    """The tiles of keys, and of the per-sample results (of `seeds` rows each)."""
    starts = torch.tensor(offsets)
    lengths = bucket(starts.diff())
    some = (lengths > 0).nonzero().flatten()
    kv_groups, out_groups = [], []
    for length, samples in group(lengths[some]):
        per_tile = max(1, SCORES // (heads * length * seeds))
        kv_groups.append((some[samples], length, per_tile))
        out_groups.append((some[samples], seeds, per_tile))
    results = torch.arange(len(offsets)) * seeds
    return pack(starts, heads, kv_groups, device), pack(results, heads, out_groups, device)


def forward(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """([n, S, H, D], natural log-sum-exp [n, S, H] in the dtype we compute in)."""
    n, (s, heads, width) = len(offsets) - 1, seeds.shape
    to_kv, to_out = _plan(offsets, s, heads, k.device)
    by_head = seeds.to(compute_dtype(seeds.dtype)).transpose(0, 1)  # [H, S, D]
    k_rows, v_rows = packed(k), packed(v)
    out, lse = to_out.buffer(k, width), to_out.buffer(k, 1)
    for kv_tile, out_tile in zip(to_kv.tiles, to_out.tiles, strict=True):
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        queries = by_head.repeat(len(keys) // heads, 1, 1)
        bias = padding_bias(kv_tile, keys)
        state = None
        for part in _slices(kv_tile.length, s * len(keys)):
            scores = product(keys[:, part], queries.mT, scale)
            if bias is not None:
                scores.add_(bias[:, part])
            state = _read(scores, values[:, part], state)
        assert state is not None
        top, total, result = state
        torch.div(result, total.mT, out=out_tile.slot(out))
        out_tile.slot(lse).copy_(top.add_(total.log_()).mT)
    wide = k.new_empty((n, s, heads), dtype=compute_dtype(k.dtype))
    return to_out.unpack(out, k.new_empty((n, s, heads, width))), to_out.unpack(lse, wide)


def backward(
    grad: Tensor,
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: tuple[int, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d seeds, dk, dv) from grad [n, S, H, D]; the weights are made again."""
    s, heads, width = seeds.shape
    to_kv, to_out = _plan(offsets, s, heads, k.device)
    by_head = seeds.to(compute_dtype(seeds.dtype)).transpose(0, 1)
    delta = (grad.to(lse.dtype) * out).sum(-1)
    k_rows, v_rows, grad_rows = packed(k), packed(v), grad.reshape(-1, width)
    lse_rows, delta_rows = lse.reshape(-1, 1), delta.reshape(-1, 1)
    dk, dv = to_kv.buffer(k, width), to_kv.buffer(k, width)
    d_seeds = torch.zeros_like(by_head, memory_format=torch.contiguous_format)
    for kv_tile, out_tile in zip(to_kv.tiles, to_out.tiles, strict=True):
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        grads = out_tile.load(grad_rows)
        row_lse, row_delta = out_tile.load(lse_rows).mT, out_tile.load(delta_rows).mT
        queries = by_head.repeat(len(keys) // heads, 1, 1)
        bias = padding_bias(kv_tile, keys)
        dk_tile, dv_tile = kv_tile.slot(dk), kv_tile.slot(dv)
        for part in _slices(kv_tile.length, s * len(keys)):
            weights = product(keys[:, part], queries.mT, scale)
            if bias is not None:
                weights.add_(bias[:, part])
            weights.sub_(row_lse).exp_()
            slope = product(values[:, part], grads.mT).sub_(row_delta).mul_(weights)
            dk_tile[:, part] = product(slope, queries, scale)
            dv_tile[:, part] = product(weights, grads)
            d_tile = product(slope.mT, keys[:, part], scale)
            d_seeds += d_tile.view(-1, heads, s, width).sum(0)  # in the order of the tiles
    return (
        d_seeds.transpose(0, 1).to(seeds.dtype).contiguous(),
        to_kv.unpack(dk, k),
        to_kv.unpack(dv, v),
    )


def _read(
    scores: Tensor, values: Tensor, state: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Running softmax: (maximum [N, 1, S], sum [N, 1, S], unnormalised result [N, S, D])."""
    top = max_over_keys(scores)
    if state is not None:
        top = torch.maximum(top, state[0])
    scores.sub_(top).exp_()
    total, result = scores.sum(1, keepdim=True), product(scores.mT, values)
    if state is not None:
        shrink = (state[0] - top).exp_()
        total.addcmul_(state[1], shrink)
        result.addcmul_(state[2], shrink.mT)
    return top, total, result


def _slices(keys: int, scores_a_key: int) -> Iterator[slice]:
    """Cuts of the keys of a tile that is larger than it should be: one long sample."""
    step = max(_MIN_KEYS, SCORES // scores_a_key)
    for start in range(0, keys, step):
        yield slice(start, min(start + step, keys))
