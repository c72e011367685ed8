"""Seed attention with torch alone: tiles of equally long samples, long ones walked in slices.

Legend: N = G * H products of a tile, K key rows of a slice, S seeds, D width. Scores lie as
[N, K, S]: reductions over keys then run along whole vectors.
"""

from __future__ import annotations

from functools import lru_cache

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
    group,
    pack,
    packed,
    product,
    slices,
    unpacked,
)

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
    """([n, S, H, D], log2-sum-exp2 [n, S, H] in the dtype we compute in)."""
    n, (s, heads, width) = len(offsets) - 1, seeds.shape
    to_kv, to_out = _plan(offsets, s, heads, k.device)
    seed_rows = _repeat(seeds, to_kv)
    k_rows, v_rows = packed(k), packed(v)
    out = to_out.result(k, width)
    lse = to_out.result(k, 1, compute_dtype(k.dtype))
    for kv_tile, out_tile in zip(to_kv.tiles, to_out.tiles, strict=True):
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        queries = seed_rows[: len(keys)]
        bias = padding_bias(kv_tile, keys)
        state = None
        for part in slices(kv_tile.length, s * len(keys), _MIN_KEYS):
            scores = product(keys[:, part], queries.mT, scale * LOG2_E)
            if bias is not None:
                scores.add_(bias[:, part])
            state = _read(scores, values[:, part], state)
        assert state is not None
        top, total, result = state
        out_tile.save(result.div_(total.mT), out)
        out_tile.save(log2_sum_(top, total).mT, lse)
    return unpacked(out, n, s, heads, width), unpacked(lse, n, s, heads)


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
    seed_rows = _repeat(seeds, to_kv)
    delta = (grad.to(lse.dtype) * out).sum(-1)
    k_rows, v_rows, grad_rows = packed(k), packed(v), grad.reshape(-1, width)
    stat_rows = torch.stack((lse, delta), dim=-1).view(-1, 2)
    dk, dv = to_kv.result(k, width), to_kv.result(v, width)
    d_seeds = lse.new_zeros(heads, s, width)
    for kv_tile, out_tile in zip(to_kv.tiles, to_out.tiles, strict=True):
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        grads = out_tile.load(grad_rows)
        row_lse, row_delta = out_tile.load(stat_rows).mT.contiguous().split(1, dim=1)
        queries = seed_rows[: len(keys)]
        bias = padding_bias(kv_tile, keys)
        for part in slices(kv_tile.length, s * len(keys), _MIN_KEYS):
            weights = product(keys[:, part], queries.mT, scale * LOG2_E)
            if bias is not None:
                weights.add_(bias[:, part])
            exponentiate_(weights, row_lse)
            slope = product(values[:, part], grads.mT).sub_(row_delta).mul_(weights)
            kv_tile.save_product(slope, queries, scale, dk, part)
            kv_tile.save_product(weights, grads, 1.0, dv, part)
            d_tile = product(slope.mT, keys[:, part], scale)
            d_seeds += d_tile.view(-1, heads, s, width).sum(0)  # in the order of the tiles
    d_seeds = d_seeds.transpose(0, 1).to(seeds.dtype)
    return d_seeds.contiguous(), unpacked(dk, *k.shape), unpacked(dv, *v.shape)


def _repeat(seeds: Tensor, to_kv: Packing) -> Tensor:
    """[G * H, S, D] for the tile of most samples; smaller tiles take its beginning."""
    samples = max((tile.samples for tile in to_kv.tiles), default=0)
    return seeds.to(compute_dtype(seeds.dtype)).transpose(0, 1).repeat(samples, 1, 1)


def _read(
    scores: Tensor, values: Tensor, state: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Running softmax: (maximum [N, 1, S], sum [N, 1, S], unnormalised result [N, S, D])."""
    top = scores.amax(1, keepdim=True)
    if state is not None:
        top = torch.maximum(top, state[0])
    total = sum_over_keys(exponentiate_(scores, top))
    result = product(scores.mT, values)
    if state is not None:
        shrink = (state[0] - top).exp2_()
        total.addcmul_(state[1], shrink)
        result.addcmul_(state[2], shrink.mT)
    return top, total, result
