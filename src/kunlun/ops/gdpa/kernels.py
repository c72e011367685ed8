"""GDPA on NVIDIA GPUs: Triton kernels, their tile sizes, and the functions that launch them.

Every sample runs on the kernel that suits its own number of keys, so that its bits do not depend
on its neighbours: the work lists of kunlun.ops.triton.tiles sort samples into buckets on the
device (<= 64, <= 128, <= 256 keys, more), one launch a bucket, and an empty bucket costs a launch
that returns at once. Neither lengths nor offsets are read by the host.

Forward: an item is SPAN query rows of one sample and head. Short keys and values stay in shared
memory while tiles of queries stream by; long ones are looped over.
Backward, without atomics, every element stored by one program:
    keys <= 128   one program owns a sample's dk and dv and streams the queries; each dq tile is
                  complete where it is made (5 products)
    more keys     dk and dv by tiles of keys, then dq by tiles of queries (4 + 3 products)
Scores are made again in the backward. Products accumulate in float32; float32 inputs go through
the tensor cores as three TF32 products (errors near 2^-22), not one, by the instructions of older
GPUs (HMMA): Hopper's own leave the registers too little room for them.

Rows past a sample's end are loaded as zeros: they score 0, activate to 0 and meet zero rows, so no
mask is laid over the scores. An infinite row scores NaN against them (0 * inf) and gives NaN where
the formula may have a number, in its own sample only.

Legend: BM queries and BN keys a tile, D channels, WIDTH their tile.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kunlun.ops.triton.activations import activate_head, activate_head_both, codes
from kunlun.ops.triton.tiles import (
    Tiles,
    grid,
    load_rows,
    moving,
    rows_of,
    sample_rows,
    store_rows,
    width_of,
    work_list,
)

SPAN = 512  # query rows an item of the forward: tiles that share one load of the keys
SLICE = 2048  # query rows an item of the backward of few keys


class Table(NamedTuple):
    """Tile sizes of one head width and item size, a bucket each: <= 64 keys, <= 128, ..., more."""

    forward: tuple[Tiles, ...]  # all but the last keep the keys
    whole: tuple[Tiles, ...]  # backward of the first buckets, with all keys in one tile
    keys: Tiles  # backward of more keys: dk and dv
    queries: Tiles  # and dq


# By (bytes an element, widest head); tests/ops/test_triton_aot.py compiles every entry.
TABLES = {
    (2, 64): Table(
        forward=(
            Tiles(128, 64, 8, 2, 2),
            Tiles(128, 128, 8, 2, 2),
            Tiles(128, 256, 8, 2, 1),
            Tiles(128, 64, 8, 3, 2),
        ),
        whole=(Tiles(64, 64, 4, 2, 2), Tiles(64, 128, 8, 2, 1)),
        keys=Tiles(64, 128, 8, 2, 1),
        queries=Tiles(128, 64, 8, 2, 2),
    ),
    (2, 128): Table(
        forward=(
            Tiles(64, 64, 4, 2, 3),
            Tiles(128, 128, 8, 2, 1),
            Tiles(128, 256, 8, 2, 1),
            Tiles(128, 64, 8, 3, 1),
        ),
        whole=(Tiles(32, 64, 8, 2, 1), Tiles(32, 128, 8, 2, 1)),
        keys=Tiles(32, 128, 8, 2, 1),
        queries=Tiles(128, 64, 8, 2, 1),
    ),
    # Three products for one: the registers hold small tiles only, and no keys between tiles.
    (4, 64): Table(
        forward=(Tiles(64, 32, 4, 2, 2),),
        whole=(),
        keys=Tiles(16, 64, 8, 1, 1),
        queries=Tiles(64, 32, 8, 1, 1),
    ),
    (4, 128): Table(
        forward=(Tiles(32, 32, 8, 2, 1),),
        whole=(),
        keys=Tiles(16, 32, 8, 1, 1),
        queries=Tiles(32, 16, 8, 1, 1),
    ),
}


def table_of(dtype: torch.dtype, width: int) -> Table:
    """The tile sizes for heads of `width` channels, a power of two."""
    return TABLES[dtype.itemsize, 64 if width <= 64 else 128]


def forward_tiles(table: Table, acts: int) -> tuple[Tiles, ...]:
    """The forward's buckets; branching on the activation leaves no registers to 256 keys."""
    several = acts.bit_count() > 1
    return (*table.forward[:2], *table.forward[3:]) if several else table.forward


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    names: list[str],
    scale: float,
    out_scale: float,
) -> Tensor:
    """[Lq, H, D]; see kunlun.ops.gdpa."""
    q, k, v = rows_of(q), rows_of(k), rows_of(v)
    q_offsets, kv_offsets = q_offsets.contiguous(), kv_offsets.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    heads, width = q.shape[1], width_of(q.shape[2])
    acts, head_codes = _activations(names, q.device)
    buckets = forward_tiles(table_of(q.dtype, width), acts)
    last = len(buckets) - 1
    work = work_list(
        q_offsets, len(q), SPAN, work=kv_offsets, bucket_by=kv_offsets, buckets=len(buckets)
    )
    for b, tiles in enumerate(buckets):
        if work.bound == 0 or not _possible(b, k):
            continue
        forward_kernel[grid(q.device, tiles.programs, work.bound * heads)](
            *(q, k, v, out, q_offsets, kv_offsets, work.items[b], head_codes),
            *(scale, out_scale, len(q), len(k), heads, heads // k.shape[1]),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2]),
            **forward_constants(tiles, b < last, q.shape[2], acts),
            **tiles.settings(),
        )
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    names: list[str],
    scale: float,
    out_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from grad [Lq, H, D]."""
    grad, q, k, v = rows_of(grad), rows_of(q), rows_of(k), rows_of(v)
    q_offsets, kv_offsets = q_offsets.contiguous(), kv_offsets.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    heads, kv_heads, width = q.shape[1], k.shape[1], width_of(q.shape[2])
    acts, head_codes = _activations(names, q.device)
    table = table_of(q.dtype, width)
    share = heads // kv_heads
    offsets = (q_offsets, kv_offsets)
    strides = [x.stride(axis) for x in (q, k, v, grad, dq, dk, dv) for axis in (0, 1)]
    numbers = (scale, out_scale, len(q), len(k))

    last = len(table.whole)
    bucketed_list = partial(work_list, bucket_by=kv_offsets, buckets=last + 1)

    # One item a sample, or a slice of its queries if those are many.
    work = bucketed_list(q_offsets, len(q), SLICE, at_least_one=True)
    for b, tiles in enumerate(table.whole):
        if work.bound == 0 or not _possible(b, k):
            continue
        # Samples of several slices come first in the list and have fewer than 2 Lq / SLICE.
        slots = 2 * len(q) // SLICE if len(q) > SLICE else 0
        shape = (slots, 2, kv_heads, tiles.keys, q.shape[2])
        partials = torch.empty(shape, dtype=torch.float32, device=q.device)
        keys_kernel[grid(q.device, tiles.programs, work.bound * kv_heads)](
            *(q, k, v, grad, dq, dk, dv, *offsets, partials, work.items[b], head_codes),
            *(*numbers, kv_heads, share, *strides, SLICE, slots),
            **keys_constants(tiles, True, q.shape[2], acts),
            **tiles.settings(),
        )
        if slots:
            sum_kernel[grid(q.device, 4, slots * kv_heads)](
                *(partials, dk, dv, *offsets, work.items[b]),
                *(slots, len(q), len(k), kv_heads, *strides[10:], SLICE),
                **{"BN": tiles.keys, "D": q.shape[2], "WIDTH": width},
                **{"num_warps": 8, "enable_fp_fusion": True},  # 4 spill
            )
    if not _possible(last, k):
        return dq, dk, dv
    work = bucketed_list(kv_offsets, len(k), table.keys.keys, work=q_offsets)
    if work.bound:
        keys_kernel[grid(q.device, table.keys.programs, work.bound * kv_heads)](
            *(q, k, v, grad, dq, dk, dv, *offsets, q, work.items[last], head_codes),
            *(*numbers, kv_heads, share, *strides, SLICE, 0),
            **keys_constants(table.keys, False, q.shape[2], acts),
            **table.keys.settings(),
        )
    work = bucketed_list(q_offsets, len(q), table.queries.rows, work=kv_offsets)
    if work.bound:
        queries_kernel[grid(q.device, table.queries.programs, work.bound * heads)](
            *(q, k, v, grad, dq, *offsets, work.items[last], head_codes),
            *(*numbers, heads, share, *strides[:10]),
            **constants(table.queries, q.shape[2], acts),
            **table.queries.settings(),
        )
    return dq, dk, dv


def _possible(bucket: int, k: Tensor) -> bool:
    """Whether a sample can have as many keys: what the host knows without asking."""
    return bucket == 0 or len(k) > 32 << bucket


def _activations(names: list[str], device: torch.device) -> tuple[int, Tensor]:
    """The set of codes as bits, and the code of each head; with one code for all, not written."""
    by_head = codes(names)
    bits = 0
    for code in by_head:
        bits |= 1 << code
    if bits.bit_count() == 1:
        return bits, torch.empty(len(by_head), dtype=torch.int32, device=device)
    return bits, _on_device(by_head, device)


@lru_cache(maxsize=64)
def _on_device(by_head: tuple[int, ...], device: torch.device) -> Tensor:
    """Copied once: a CUDA graph is recorded after a first call outside, as torch's guide says."""
    return torch.tensor(by_head, dtype=torch.int32, device=device)


def forward_constants(tiles: Tiles, resident: bool, channels: int, acts: int) -> dict[str, object]:
    """Compile-time arguments of forward_kernel."""
    return {"RESIDENT": resident, "SPAN": SPAN, **constants(tiles, channels, acts)}


def keys_constants(tiles: Tiles, whole: bool, channels: int, acts: int) -> dict[str, object]:
    """Compile-time arguments of keys_kernel."""
    return {"WHOLE": whole, **constants(tiles, channels, acts)}


def constants(tiles: Tiles, channels: int, acts: int) -> dict[str, object]:
    """Compile-time arguments all kernels take."""
    return {
        "D": channels,
        "WIDTH": width_of(channels),
        "ACTS": acts,
        "BM": tiles.rows,
        "BN": tiles.keys,
    }


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _add_product(a, b, total):
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def _item(items, place, head):
    """(sample, first row, head) of the pair at `place`; heads of one pair are neighbours."""
    pair = items + 1 + 2 * place
    return tl.load(pair), tl.load(pair + 1), head.to(tl.int64)


@triton.jit(do_not_specialize=["num_q", "num_k"])
def forward_kernel(
    q, k, v, out, q_offsets, kv_offsets, items, head_codes, scale, out_scale, num_q, num_k,
    heads, share, q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head,
    ACTS: tl.constexpr, RESIDENT: tl.constexpr, SPAN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # Without resident keys, tiles of a span have nothing to share.
    parts: tl.constexpr = 1 if RESIDENT else SPAN // BM
    count = tl.load(items) * parts * heads
    for item in tl.range(tl.program_id(0), count, tl.num_programs(0), disable_licm=True):
        sample, first, head = _item(items, item // (parts * heads), item % heads)
        first += item // heads % parts * BM
        start, length = sample_rows(q_offsets, sample, num_q)
        kv_start, kv_length = sample_rows(kv_offsets, sample, num_k)
        kv_head = head // share
        q_base = q + start * q_row + head * q_head
        out_base = out + start * out_row + head * out_head
        k_base = k + kv_start * k_row + kv_head * k_head
        v_base = v + kv_start * v_row + kv_head * v_head
        code = tl.load(head_codes + head)
        if RESIDENT:
            last = tl.minimum(first + SPAN, length)
            k_tile = load_rows(k_base, moving(k_row, sample), 0, kv_length, BN, D, WIDTH)
            v_tile = load_rows(v_base, moving(v_row, sample), 0, kv_length, BN, D, WIDTH)
            for row in range(first, last, BM):
                q_tile = load_rows(q_base, moving(q_row, row), row, length, BM, D, WIDTH)
                total = tl.zeros([BM, WIDTH], tl.float32)
                total = _add_read(q_tile, k_tile, v_tile, total, scale, code, ACTS)
                total *= out_scale
                store_rows(out_base, moving(out_row, row), row, length, total, BM, D, WIDTH)
        elif first < length:
            q_tile = load_rows(q_base, moving(q_row, sample), first, length, BM, D, WIDTH)
            total = tl.zeros([BM, WIDTH], tl.float32)
            for key in range(0, kv_length, BN):
                k_tile = load_rows(k_base, moving(k_row, key), key, kv_length, BN, D, WIDTH)
                v_tile = load_rows(v_base, moving(v_row, key), key, kv_length, BN, D, WIDTH)
                total = _add_read(q_tile, k_tile, v_tile, total, scale, code, ACTS)
            total *= out_scale
            store_rows(out_base, moving(out_row, sample), first, length, total, BM, D, WIDTH)


@triton.jit
def _add_read(q_tile, k_tile, v_tile, total, scale, code, ACTS: tl.constexpr):
    scores = _product(q_tile, tl.trans(k_tile)) * scale
    return _add_product(activate_head(scores, code, ACTS).to(v_tile.dtype), v_tile, total)


@triton.jit(do_not_specialize=["num_q", "num_k", "slots"])
def keys_kernel(
    q, k, v, grad, dq, dk, dv, q_offsets, kv_offsets, partials, items, head_codes, scale,
    out_scale, num_q, num_k, kv_heads, share, q_row, q_head, k_row, k_head, v_row, v_head,
    grad_row, grad_head, dq_row, dq_head, dk_row, dk_head, dv_row, dv_head, slice_rows,
    slots, ACTS: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys; with WHOLE these are all keys, and dq is stored, too.

    Keys are the rows of all products, so that few queries a tile keep Hopper's instructions.
    """
    count = tl.load(items) * kv_heads
    for item in tl.range(tl.program_id(0), count, tl.num_programs(0), disable_licm=True):
        sample, first, kv_head = _item(items, item // kv_heads, item % kv_heads)
        start, length = sample_rows(q_offsets, sample, num_q)
        kv_start, kv_length = sample_rows(kv_offsets, sample, num_k)
        if WHOLE:
            key = 0
            last = tl.minimum(first + slice_rows, length)
        else:
            key = first
            first = 0
            last = length
        k_base = k + kv_start * k_row + kv_head * k_head
        v_base = v + kv_start * v_row + kv_head * v_head
        k_tile = load_rows(k_base, moving(k_row, sample), key, kv_length, BN, D, WIDTH)
        v_tile = load_rows(v_base, moving(v_row, sample), key, kv_length, BN, D, WIDTH)
        dk_tile = tl.zeros([BN, WIDTH], tl.float32)
        dv_tile = tl.zeros([BN, WIDTH], tl.float32)
        # Tiles of queries of all heads that read these keys, in one loop: two would spill.
        tiles = tl.cdiv(last - first, BM)
        for i in range(0, tiles * share):
            row = first + i % tiles * BM
            head = kv_head * share + i // tiles
            q_base = q + start * q_row + head * q_head
            grad_base = grad + start * grad_row + head * grad_head
            q_tile = load_rows(q_base, moving(q_row, row), row, length, BM, D, WIDTH)
            grad_tile = load_rows(grad_base, moving(grad_row, row), row, length, BM, D, WIDTH)
            scores = _product(k_tile, tl.trans(q_tile)) * scale
            code = tl.load(head_codes + head)
            weights, slope = activate_head_both(scores, code, ACTS)
            dv_tile = _add_product(weights.to(q_tile.dtype), grad_tile, dv_tile)
            slope *= _product(v_tile, tl.trans(grad_tile))
            d_scores = slope.to(q_tile.dtype)
            dk_tile = _add_product(d_scores, q_tile, dk_tile)
            if WHOLE:
                # The longer side takes the 64 rows that Hopper's instructions want.
                if WIDTH < BM:
                    dq_tile = _product(tl.trans(d_scores), k_tile)
                else:
                    dq_tile = tl.trans(_product(tl.trans(k_tile), d_scores))
                dq_tile *= scale * out_scale
                dq_base = dq + start * dq_row + head * dq_head
                store_rows(dq_base, moving(dq_row, row), row, length, dq_tile, BM, D, WIDTH)
        dk_tile *= scale * out_scale
        dv_tile *= out_scale
        if WHOLE and length > slice_rows:
            slot = (item // kv_heads).to(tl.int64) * 2 * kv_heads + kv_head
            at = partials + slot * BN * D
            rows = tl.where(item // kv_heads < slots, kv_length, 0)  # offsets are not checked
            store_rows(at, D, 0, rows, dk_tile, BN, D, WIDTH)
            store_rows(at + kv_heads * BN * D, D, 0, rows, dv_tile, BN, D, WIDTH)
        else:
            dk_base = dk + kv_start * dk_row + kv_head * dk_head
            dv_base = dv + kv_start * dv_row + kv_head * dv_head
            store_rows(dk_base, moving(dk_row, sample), key, kv_length, dk_tile, BN, D, WIDTH)
            store_rows(dv_base, moving(dv_row, sample), key, kv_length, dv_tile, BN, D, WIDTH)


@triton.jit(do_not_specialize=["slots", "num_q", "num_k"])
def sum_kernel(
    partials, dk, dv, q_offsets, kv_offsets, items, slots, num_q, num_k, kv_heads, dk_row,
    dk_head, dv_row, dv_head, slice_rows,
    BN: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dk and dv of samples of several slices, summed in the order of the slices."""
    count = tl.minimum(tl.load(items), slots)
    for item in tl.range(tl.program_id(0), count * kv_heads, tl.num_programs(0), disable_licm=True):
        sample, first, kv_head = _item(items, item // kv_heads, item % kv_heads)
        _, length = sample_rows(q_offsets, sample, num_q)
        if (first == 0) & (length > slice_rows):
            kv_start, kv_length = sample_rows(kv_offsets, sample, num_k)
            dk_tile = tl.zeros([BN, WIDTH], tl.float32)
            dv_tile = tl.zeros([BN, WIDTH], tl.float32)
            slices = tl.minimum(tl.cdiv(length, slice_rows), slots - item // kv_heads)
            for i in range(0, slices):
                slot = (item // kv_heads + i).to(tl.int64) * 2 * kv_heads + kv_head
                at = partials + slot * BN * D
                dk_tile += load_rows(at, D, 0, kv_length, BN, D, WIDTH)
                dv_tile += load_rows(at + kv_heads * BN * D, D, 0, kv_length, BN, D, WIDTH)
            dk_base = dk + kv_start * dk_row + kv_head * dk_head
            dv_base = dv + kv_start * dv_row + kv_head * dv_head
            store_rows(dk_base, dk_row, 0, kv_length, dk_tile, BN, D, WIDTH)
            store_rows(dv_base, dv_row, 0, kv_length, dv_tile, BN, D, WIDTH)


@triton.jit(do_not_specialize=["num_q", "num_k"])
def queries_kernel(
    q, k, v, grad, dq, q_offsets, kv_offsets, items, head_codes, scale, out_scale, num_q, num_k,
    heads, share, q_row, q_head, k_row, k_head, v_row, v_head, grad_row, grad_head, dq_row,
    dq_head,
    ACTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries that reads all keys."""
    for item in tl.range(
        tl.program_id(0), tl.load(items) * heads, tl.num_programs(0), disable_licm=True
    ):
        sample, first, head = _item(items, item // heads, item % heads)
        start, length = sample_rows(q_offsets, sample, num_q)
        kv_start, kv_length = sample_rows(kv_offsets, sample, num_k)
        q_base = q + start * q_row + head * q_head
        grad_base = grad + start * grad_row + head * grad_head
        dq_base = dq + start * dq_row + head * dq_head
        kv_head = head // share
        k_base = k + kv_start * k_row + kv_head * k_head
        v_base = v + kv_start * v_row + kv_head * v_head
        q_tile = load_rows(q_base, moving(q_row, sample), first, length, BM, D, WIDTH)
        grad_tile = load_rows(grad_base, moving(grad_row, sample), first, length, BM, D, WIDTH)
        dq_tile = tl.zeros([BM, WIDTH], tl.float32)
        code = tl.load(head_codes + head)
        for key in range(0, kv_length, BN):
            k_tile = load_rows(k_base, moving(k_row, key), key, kv_length, BN, D, WIDTH)
            v_tile = load_rows(v_base, moving(v_row, key), key, kv_length, BN, D, WIDTH)
            scores = _product(q_tile, tl.trans(k_tile)) * scale
            _, slope = activate_head_both(scores, code, ACTS)
            slope *= _product(grad_tile, tl.trans(v_tile))
            dq_tile = _add_product(slope.to(k_tile.dtype), k_tile, dq_tile)
        dq_tile *= scale * out_scale
        store_rows(dq_base, moving(dq_row, sample), first, length, dq_tile, BM, D, WIDTH)
