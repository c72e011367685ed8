"""Window attention on NVIDIA GPUs: Triton kernels, their tile sizes, and what launches them.

Forward: a program holds a tile of queries of one head and walks the keys its band reaches, with a
running softmax. Backward, without atomics, every element stored by one program: dq by tiles of
queries, which also leaves delta = sum(grad * out) for dk and dv by tiles of keys, which walk the
queries whose bands reach them, of all heads that share the key head. Weights are made again from
the log-sum-exp. Pairs are compared with the band in tiles at its edges only.

Tiles start at a sample's own first row, so its bits do not depend on its neighbours. The host reads
no length: work lists are made on the device (kunlun.ops.triton.tiles).

Legend: BM queries and BN keys a tile, D channels, WIDTH their tile, band = keys i - before to
i + after of query i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kunlun.ops.softmax import LOG2_E
from kunlun.ops.triton.softmax import (
    BANNED,
    Tile,
    add_product,
    finish,
    products,
    read,
    take,
)
from kunlun.ops.triton.tiles import (
    load_rows,
    rows_of,
    sample_rows,
    store_rows,
    width_of,
    work_list,
)

_FAR = 2**30 - 1  # beyond any row of a sample, and its double still is an int32


class Table(NamedTuple):
    """Tile sizes of one head width and item size."""

    forward: Tile
    queries: Tile  # backward: dq
    keys: Tile  # backward: dk and dv


# By (bytes an element, widest head); tests/ops/test_triton_aot_attention.py compiles them.
TABLES = {
    (2, 64): Table(Tile(64, 64, 4, 3), queries=Tile(64, 64, 4, 2), keys=Tile(64, 64, 4, 2)),
    (2, 128): Table(Tile(64, 64, 4, 3), queries=Tile(128, 64, 8, 2), keys=Tile(64, 64, 8, 2)),
    (4, 64): Table(Tile(32, 32, 8, 1), queries=Tile(64, 32, 8, 1), keys=Tile(32, 64, 8, 1)),
    (4, 128): Table(Tile(32, 32, 8, 1), queries=Tile(32, 32, 4, 1), keys=Tile(16, 32, 4, 1)),
}


def table_of(dtype: torch.dtype, width: int) -> Table:
    """The tile sizes for heads of `width` channels, a power of two."""
    return TABLES[dtype.itemsize, 64 if width <= 64 else 128]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    window: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """([L, H, D], log2-sum-exp2 float32 [L, H]); see kunlun.ops.window_attention."""
    q, k, v, offsets = rows_of(q), rows_of(k), rows_of(v), offsets.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    heads = q.shape[1]
    tile = table_of(q.dtype, width_of(q.shape[2])).forward
    work = work_list(offsets, len(q), tile.rows)
    if work.bound:
        forward_kernel[(work.bound * heads,)](
            *(q, k, v, out, lse, offsets, work.items, len(q), heads, heads // k.shape[1]),
            *(*_band(window, causal), scale * LOG2_E),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            **tile.constants(q.shape[2]),
            **tile.settings(),
        )
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    window: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from grad [L, H, D]."""
    grad, q, k, v, offsets = rows_of(grad), rows_of(q), rows_of(k), rows_of(v), offsets.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    heads, kv_heads = q.shape[1], k.shape[1]
    table = table_of(q.dtype, width_of(q.shape[2]))
    settings = (*_band(window, causal), scale, scale * LOG2_E)
    strides = [x.stride(axis) for x in (grad, q, k, v) for axis in (0, 1)]
    numbers = (len(q), heads, heads // kv_heads)

    tile = table.queries
    work = work_list(offsets, len(q), tile.rows)
    if not work.bound:
        return dq, dk, dv
    queries_kernel[(work.bound * heads,)](
        *(grad, q, k, v, out.contiguous(), lse.contiguous(), delta, dq, offsets, work.items),
        *(*numbers, *settings, *strides),
        **tile.constants(q.shape[2]),
        **tile.settings(),
    )
    tile = table.keys
    work = work_list(offsets, len(q), tile.keys)
    keys_kernel[(work.bound * kv_heads,)](
        *(grad, q, k, v, lse.contiguous(), delta, dk, dv, offsets, work.items),
        *(*numbers, *settings, *strides),
        **tile.constants(q.shape[2]),
        **tile.settings(),
    )
    return dq, dk, dv


def _band(window: int, causal: bool) -> tuple[int, int]:
    before = min(window, _FAR)
    return before, 0 if causal else before


@triton.jit
def _ban(scores, row, key, rows, keys, length, before, after, BM: tl.constexpr, BN: tl.constexpr):
    """Bans pairs outside the band or the sample.

    row, key: the tile's first; rows, keys: all of them, along their axis of `scores`.
    """
    if (key < row + BM - 1 - before) | (key + BN - 1 > row + after) | (key + BN > length):
        near = (keys >= rows - before) & (keys <= rows + after) & (keys < length)
        scores = tl.where(near, scores, BANNED)
    return scores


@triton.jit(do_not_specialize=["num_rows", "before", "after"])
def forward_kernel(
    q, k, v, out, lse, offsets, items, num_rows, heads, share, before, after, factor,
    q_row, q_head, k_row, k_head, v_row, v_head,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    if item < tl.load(items) * heads:
        sample, row, head = take(items, item, heads)
        start, length = sample_rows(offsets, sample, num_rows)
        k_base = k + start * k_row + head // share * k_head
        v_base = v + start * v_row + head // share * v_head
        q_tile = load_rows(q + start * q_row + head * q_head, q_row, row, length, BM, D, WIDTH)
        rows = row + tl.arange(0, BM)
        top = tl.full([BM], BANNED, tl.float32)
        total = tl.zeros([BM], tl.float32)
        result = tl.zeros([BM, WIDTH], tl.float32)
        for key in range(tl.maximum(row - before, 0), tl.minimum(row + BM + after, length), BN):
            keys = key + tl.arange(0, BN)
            k_tile = load_rows(k_base, k_row, key, length, BN, D, WIDTH)
            v_tile = load_rows(v_base, v_row, key, length, BN, D, WIDTH)
            scores = _ban(
                products(q_tile, k_tile) * factor,
                row, key, rows[:, None], keys[None, :], length, before, after, BM, BN,
            )  # fmt: skip
            top, total, result = read(scores, v_tile, top, total, result)
        result, row_lse = finish(top, total, result)
        out_row = heads * D
        store_rows(out + start * out_row + head * D, out_row, row, length, result, BM, D, WIDTH)
        tl.store(lse + (start + rows) * heads + head, row_lse, mask=rows < length)


@triton.jit(do_not_specialize=["num_rows", "before", "after"])
def queries_kernel(
    grad, q, k, v, out, lse, delta, dq, offsets, items, num_rows, heads, share,
    before, after, scale, factor,
    grad_row, grad_head, q_row, q_head, k_row, k_head, v_row, v_head,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries, and their delta."""
    item = tl.program_id(0)
    if item < tl.load(items) * heads:
        sample, row, head = take(items, item, heads)
        start, length = sample_rows(offsets, sample, num_rows)
        k_base = k + start * k_row + head // share * k_head
        v_base = v + start * v_row + head // share * v_head
        grad_base = grad + start * grad_row + head * grad_head
        q_tile = load_rows(q + start * q_row + head * q_head, q_row, row, length, BM, D, WIDTH)
        grad_tile = load_rows(grad_base, grad_row, row, length, BM, D, WIDTH)
        out_row = heads * D
        at = start * out_row + head * D
        out_tile = load_rows(out + at, out_row, row, length, BM, D, WIDTH)
        rows = row + tl.arange(0, BM)
        stats = (start + rows) * heads + head
        row_delta = tl.sum(grad_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
        tl.store(delta + stats, row_delta, mask=rows < length)
        row_lse = tl.load(lse + stats, mask=rows < length, other=0.0)
        dq_tile = tl.zeros([BM, WIDTH], tl.float32)
        for key in range(tl.maximum(row - before, 0), tl.minimum(row + BM + after, length), BN):
            keys = key + tl.arange(0, BN)
            k_tile = load_rows(k_base, k_row, key, length, BN, D, WIDTH)
            v_tile = load_rows(v_base, v_row, key, length, BN, D, WIDTH)
            scores = _ban(
                products(q_tile, k_tile) * factor,
                row, key, rows[:, None], keys[None, :], length, before, after, BM, BN,
            )  # fmt: skip
            slope = products(grad_tile, v_tile) - row_delta[:, None]
            slope *= tl.exp2(scores - row_lse[:, None])
            dq_tile = add_product(slope, k_tile, dq_tile)
        store_rows(dq + at, out_row, row, length, dq_tile * scale, BM, D, WIDTH)


@triton.jit(do_not_specialize=["num_rows", "before", "after"])
def keys_kernel(
    grad, q, k, v, lse, delta, dk, dv, offsets, items, num_rows, heads, share,
    before, after, scale, factor,
    grad_row, grad_head, q_row, q_head, k_row, k_head, v_row, v_head,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys, which are the rows of its products."""
    kv_heads = heads // share
    item = tl.program_id(0)
    if item < tl.load(items) * kv_heads:
        sample, key, kv_head = take(items, item, kv_heads)
        start, length = sample_rows(offsets, sample, num_rows)
        k_base = k + start * k_row + kv_head * k_head
        v_base = v + start * v_row + kv_head * v_head
        k_tile = load_rows(k_base, k_row, key, length, BN, D, WIDTH)
        v_tile = load_rows(v_base, v_row, key, length, BN, D, WIDTH)
        keys = key + tl.arange(0, BN)
        dk_tile = tl.zeros([BN, WIDTH], tl.float32)
        dv_tile = tl.zeros([BN, WIDTH], tl.float32)
        first = tl.maximum(key - after, 0)
        tiles = tl.cdiv(tl.minimum(key + BN + before, length) - first, BM)
        for step in range(0, tiles * share):
            head = kv_head * share + step // tiles
            row = first + step % tiles * BM
            rows = row + tl.arange(0, BM)
            q_base = q + start * q_row + head * q_head
            q_tile = load_rows(q_base, q_row, row, length, BM, D, WIDTH)
            grad_base = grad + start * grad_row + head * grad_head
            grad_tile = load_rows(grad_base, grad_row, row, length, BM, D, WIDTH)
            # Rows past the end weigh 1 and meet zero gradients.
            stats = (start + rows) * heads + head
            row_lse = tl.load(lse + stats, mask=rows < length, other=0.0)
            row_delta = tl.load(delta + stats, mask=rows < length, other=0.0)
            scores = _ban(
                products(k_tile, q_tile) * factor,
                row, key, rows[None, :], keys[:, None], length, before, after, BM, BN,
            )  # fmt: skip
            weights = tl.exp2(scores - row_lse[None, :])
            dv_tile = add_product(weights, grad_tile, dv_tile)
            slope = weights * (products(v_tile, grad_tile) - row_delta[None, :])
            dk_tile = add_product(slope, q_tile, dk_tile)
        kv_row = kv_heads * D
        at = start * kv_row + kv_head * D
        store_rows(dk + at, kv_row, key, length, dk_tile * scale, BN, D, WIDTH)
        store_rows(dv + at, kv_row, key, length, dv_tile, BN, D, WIDTH)
