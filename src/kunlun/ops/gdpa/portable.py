"""GDPA with torch alone, on any device: tiles of equally long samples, nothing of size q x k kept.

The scores of a tile are made, activated in place and used while they are in cache; the backward
makes them again. Legend: N = G * Hkv products of a tile, R query rows (of all heads that share a
key head), K key rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.tiles import SCORES, Packing, bucket, fold, group, pack, packed, product, store

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
    heads, kv_heads = q.shape[1], k.shape[1]
    to_q, to_kv = _plan(q_offsets, kv_offsets, heads, kv_heads, q.device)
    q_rows, k_rows, v_rows = packed(q), packed(k), packed(v)
    out = to_q.buffer(q, q.shape[2])
    for q_tile, kv_tile in zip(to_q.tiles, to_kv.tiles, strict=True):
        queries, into = q_tile.load(q_rows), q_tile.slot(out)
        # Zero key rows score 0, activate to 0 and add nothing.
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        for part in _slices(q_tile.length, heads * kv_tile.length * len(keys) // kv_heads):
            scores = product(fold(queries, part, heads // kv_heads), keys.mT, scale)
            _activate_(scores, names, kv_heads)
            store(into, part, heads // kv_heads, product(scores, values, out_scale))
    return to_q.unpack(out, q)


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
    heads, kv_heads = q.shape[1], k.shape[1]
    share = heads // kv_heads
    to_q, to_kv = _plan(q_offsets, kv_offsets, heads, kv_heads, q.device)
    q_rows, k_rows, v_rows, grad_rows = packed(q), packed(k), packed(v), packed(grad)
    dq, dk, dv = (p.buffer(q, q.shape[2]) for p in (to_q, to_kv, to_kv))
    for q_tile, kv_tile in zip(to_q.tiles, to_kv.tiles, strict=True):
        queries = q_tile.load(q_rows)
        # A zero gradient silences padded queries, whatever row they repeat.
        grads = q_tile.load(grad_rows, zero_padding=True)
        keys, values = (kv_tile.load(x, zero_padding=True) for x in (k_rows, v_rows))
        dq_tile, dk_tile, dv_tile = q_tile.slot(dq), kv_tile.slot(dk), kv_tile.slot(dv)
        for part in _slices(q_tile.length, heads * kv_tile.length * len(keys) // kv_heads):
            q_part, grad_part = fold(queries, part, share), fold(grads, part, share)
            scores = product(q_part, keys.mT, scale)
            slope = product(grad_part, values.mT, out_scale)
            _activate_(scores, names, kv_heads, slope)
            store(dq_tile, part, share, product(slope, keys, scale))
            beta = 0 if part.start == 0 else 1
            torch.baddbmm(dk_tile, slope.mT, q_part, beta=beta, alpha=scale, out=dk_tile)
            torch.baddbmm(dv_tile, scores.mT, grad_part, beta=beta, alpha=out_scale, out=dv_tile)
    return to_q.unpack(dq, q), to_kv.unpack(dk, k), to_kv.unpack(dv, v)


def _slices(rows: int, scores_a_row: int) -> Iterator[slice]:
    """Cuts of the rows of a tile that is larger than it should be: one long sample."""
    step = max(_MIN_ROWS, SCORES // scores_a_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _activate_(
    scores: Tensor, names: list[str], kv_heads: int, slope: Tensor | None = None
) -> None:
    """Activates [N, R, K] in place; with `slope`, also multiplies that by the derivative."""
    if len(set(names)) == 1:
        _run_(names[0], scores, slope)
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
