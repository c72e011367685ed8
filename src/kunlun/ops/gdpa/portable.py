"""GDPA with torch alone, on any device: tiles of equally long samples, nothing of size q x k kept.

The scores of a tile are made, activated in place and used while they are in cache; the backward
makes them again. Legend: N = G * Hkv products of a tile, R query rows (of all heads that share a
key head), K key rows, D width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.tiles import (
    SCORES,
    Packing,
    bucket,
    fold,
    group,
    pack,
    packed,
    product,
    slices,
    unpacked,
    whole,
)

_MIN_ROWS = 32  # of a slice through one long sample; thinner products waste the core


@lru_cache(maxsize=16)
def _plan(
    q_offsets: tuple[int, ...],
    kv_offsets: tuple[int, ...],
    heads: int,
    kv_heads: int,
    device: torch.device,
) -> tuple[Packing, Packing]:
    """The tiles of queries and keys. Layers and the backward of one batch share it."""
    q, kv = torch.tensor(q_offsets), torch.tensor(kv_offsets)
    rows, keys = bucket(q.diff()), bucket(kv.diff())
    some = ((rows > 0) & (keys > 0)).nonzero().flatten()  # the others are zeros by definition
    q_groups, kv_groups = [], []
    for shape, samples in group((rows[some] << 32) + keys[some]):
        n_rows, n_keys = shape >> 32, shape & (2**32 - 1)
        per_tile = max(1, SCORES // (heads * n_rows * n_keys))
        q_groups.append((some[samples], n_rows, per_tile))
        kv_groups.append((some[samples], n_keys, per_tile))
    return pack(q, heads, q_groups, device), pack(kv, kv_heads, kv_groups, device)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: tuple[int, ...],
    kv_offsets: tuple[int, ...],
    names: list[str],
    scale: float,
    out_scale: float,
) -> Tensor:
    """[Lq, H, D]; see kunlun.ops.gdpa."""
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[2]
    share = heads // kv_heads
    to_q, to_kv = _plan(q_offsets, kv_offsets, heads, kv_heads, q.device)
    q_rows, k_rows, v_rows = packed(q), packed(k), packed(v)
    out = to_q.result(q, width)
    for q_tile, kv_tile in zip(to_q.tiles, to_kv.tiles, strict=True):
        queries = q_tile.load(q_rows)
        # Zero key rows score 0, activate to 0 and add nothing.
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        for part in slices(q_tile.length, len(queries) * kv_tile.length, _MIN_ROWS):
            scores = product(fold(queries, part, share), keys.mT, scale)
            _activate_(scores, names, kv_heads)
            q_tile.save_product(scores, values, out_scale, out, part)
    return unpacked(out, *q.shape)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: tuple[int, ...],
    kv_offsets: tuple[int, ...],
    names: list[str],
    scale: float,
    out_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from grad [Lq, H, D]; the scores are made again."""
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[2]
    share = heads // kv_heads
    to_q, to_kv = _plan(q_offsets, kv_offsets, heads, kv_heads, q.device)
    q_rows, k_rows, v_rows, grad_rows = packed(q), packed(k), packed(v), packed(grad)
    dq, dk, dv = to_q.result(q, width), to_kv.result(k, width), to_kv.result(v, width)
    for q_tile, kv_tile in zip(to_q.tiles, to_kv.tiles, strict=True):
        queries = q_tile.load(q_rows)
        # A zero gradient silences padded queries, whatever row they repeat.
        grads = q_tile.load(grad_rows, zero_padding=True)
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        for part in slices(q_tile.length, len(queries) * kv_tile.length, _MIN_ROWS):
            q_part, grad_part = fold(queries, part, share), fold(grads, part, share)
            scores = product(q_part, keys.mT, scale)
            slope = product(grad_part, values.mT, out_scale)
            _activate_(scores, names, kv_heads, slope)
            q_tile.save_product(slope, keys, scale, dq, part)
            if part.start == 0:
                dk_tile = product(slope.mT, q_part, scale)
                dv_tile = product(scores.mT, grad_part, out_scale)
            else:
                dk_tile.baddbmm_(slope.mT, q_part, alpha=scale)
                dv_tile.baddbmm_(scores.mT, grad_part, alpha=out_scale)
        kv_tile.save(dk_tile, dk)
        kv_tile.save(dv_tile, dv)
    return unpacked(dq, *q.shape), unpacked(dk, *k.shape), unpacked(dv, *v.shape)


def _activate_(
    scores: Tensor, names: list[str], kv_heads: int, slope: Tensor | None = None
) -> None:
    """Activates [N, R, K] in place; with `slope`, also multiplies that by the derivative."""
    if len(set(names)) == 1:
        _run_(names[0], whole(scores), None if slope is None else whole(slope))
        return
    samples = scores.shape[0] // kv_heads
    by_head = scores.view(samples, len(names), -1, scores.shape[2])
    slopes = None if slope is None else slope.view(by_head.shape)
    for h, name in enumerate(names):
        _run_(name, by_head[:, h], None if slopes is None else slopes[:, h])


def _run_(name: str, scores: Tensor, slope: Tensor | None) -> None:
    if slope is None:
        ACTIVATIONS[name].forward_(scores)
    else:
        ACTIVATIONS[name].backward_(scores, slope)
