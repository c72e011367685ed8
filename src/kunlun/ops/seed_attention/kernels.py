"""Seed attention on NVIDIA GPUs: Triton kernels, their tile sizes, and what launches them.

Forward: a program holds a tile of seeds and walks at most SPLIT keys of one sample and head with a
running softmax. Samples of more keys are split; their partial results are merged in order by a
second kernel, which is not launched when no sample can be that long. Seeds are the rows of the
products, padded to what a tensor core takes: reading keys and values costs more than the padding.

Backward, without atomics. All tiles of keys of the batch are cut into a fixed number of slices,
one program each, which keeps the gradient of the seeds; these partial sums are added in order. If
all seeds fit one tile, the same program stores dk and dv, and keys and values are read once; if
not, another kernel makes dk and dv. Keys are the rows of the products: there are many of them.

Tiles start at a sample's own first row, so its bits do not depend on its neighbours. The host reads
no length: work lists are made on the device (kunlun.ops.triton.tiles).

Legend: BM seeds and BN keys a tile, blocks = tiles of seeds, D channels, WIDTH their tile.
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

SPLIT = 1024  # keys a program of the forward
SLICES = 264  # programs of the backward, heads and blocks included: two an SM of an H100
_MERGED = 16  # seeds a program that merges
_DELTAS = 32  # rows a program that makes delta


class Table(NamedTuple):
    """Tile sizes of one head width and item size."""

    forward: Tile
    many: Tile  # forward of more seeds than that tile holds
    slices: Tile  # backward; rows: the most seeds, fewer take a smaller tile
    keys: Tile  # backward of more seeds than that: dk and dv


# By (bytes an element, widest head); tests/ops/test_triton_aot_attention.py compiles them.
TABLES = {
    (2, 64): Table(
        Tile(64, 64, 4, 3), Tile(128, 64, 8, 3), slices=Tile(64, 64, 4, 2), keys=Tile(64, 64, 4, 2)
    ),
    (2, 128): Table(
        Tile(64, 64, 4, 3), Tile(128, 64, 8, 3), slices=Tile(64, 64, 8, 2), keys=Tile(64, 64, 8, 2)
    ),
    (4, 64): Table(
        Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), slices=Tile(32, 32, 8, 1), keys=Tile(32, 32, 8, 1)
    ),
    (4, 128): Table(
        Tile(32, 32, 8, 2), Tile(32, 32, 8, 2), slices=Tile(32, 32, 8, 1), keys=Tile(16, 32, 4, 1)
    ),
}


def table_of(dtype: torch.dtype, width: int) -> Table:
    """The tile sizes for heads of `width` channels, a power of two."""
    return TABLES[dtype.itemsize, 64 if width <= 64 else 128]


def forward(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """([n, S, H, D], log2-sum-exp2 float32 [n, S, H]); see kunlun.ops.seed_attention."""
    seeds, k, v, offsets = rows_of(seeds), rows_of(k), rows_of(v), offsets.contiguous()
    samples, (number, heads, channels) = offsets.shape[0] - 1, seeds.shape
    out = torch.empty((samples, number, heads, channels), dtype=k.dtype, device=k.device)
    lse = torch.empty(out.shape[:3], dtype=torch.float32, device=k.device)
    if out.numel() == 0:
        return out, lse
    table = table_of(k.dtype, width_of(channels))
    tile = table.forward if number <= table.forward.rows else table.many
    blocks = triton.cdiv(number, tile.rows)
    work = work_list(offsets, len(k), SPLIT, at_least_one=True)
    # The longest come first in the list, so the split ones have fewer than 2 L / SPLIT items.
    slots = 2 * len(k) // SPLIT if len(k) > SPLIT else 0
    part = torch.empty((slots, heads, number, channels), dtype=torch.float32, device=k.device)
    part_stats = torch.empty((slots, heads, 2, number), dtype=torch.float32, device=k.device)
    results = (out, lse, part, part_stats, offsets, work.items)
    forward_kernel[(work.bound * heads * blocks,)](
        *(seeds, k, v, *results, len(k), slots, number, heads, blocks, scale * LOG2_E),
        *(*seeds.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
        **forward_constants(tile, channels),
        **tile.settings(),
    )
    if slots:
        blocks = triton.cdiv(number, _MERGED)
        merge_kernel[(slots * heads * blocks,)](
            *(*results, len(k), slots, number, heads, blocks),
            **merge_constants(channels),
            enable_fp_fusion=True,
        )
    return out, lse


def backward(
    grad: Tensor,
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d seeds, dk, dv) from grad [n, S, H, D]."""
    seeds, k, v, offsets = rows_of(seeds), rows_of(k), rows_of(v), offsets.contiguous()
    grad, lse = grad.contiguous(), lse.contiguous()
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    number, heads, channels = seeds.shape
    if out.numel() == 0 or len(k) == 0:
        return torch.zeros(seeds.shape, dtype=seeds.dtype, device=seeds.device), dk, dv
    delta = torch.empty(lse.shape, dtype=torch.float32, device=k.device)
    delta_kernel[(triton.cdiv(delta.numel(), _DELTAS),)](
        *(grad, out.contiguous(), delta, delta.numel()),
        **delta_constants(channels),
        enable_fp_fusion=True,
    )
    table = table_of(k.dtype, width_of(channels))
    tile = _holding(number, table.slices)
    blocks = triton.cdiv(number, tile.rows)
    slices = max(1, SLICES // (heads * blocks))
    part = torch.empty((slices, heads, number, channels), dtype=torch.float32, device=k.device)
    work = work_list(offsets, len(k), tile.keys)
    inputs = (grad, seeds, k, v, lse, delta, dk, dv)
    numbers = (len(k), number, heads, scale, scale * LOG2_E)
    strides = [x.stride(axis) for x in (seeds, k, v) for axis in (0, 1)]
    slices_kernel[(slices, heads, blocks)](
        *(*inputs, part, offsets, work.items, *numbers, *strides),
        **slices_constants(tile, channels, blocks == 1),
        **tile.settings(),
    )
    if blocks > 1:
        tile = table.keys
        work = work_list(offsets, len(k), tile.keys)
        keys_kernel[(work.bound * heads,)](
            *(*inputs, offsets, work.items, *numbers, *strides),
            **tile.constants(channels),
            **tile.settings(),
        )
    return part.sum(0).transpose(0, 1).to(seeds.dtype).contiguous(), dk, dv


def _holding(seeds: int, tile: Tile) -> Tile:
    """The tile cut to the rows that so few seeds need."""
    return tile._replace(rows=min(tile.rows, width_of(seeds)))


def forward_constants(tile: Tile, channels: int) -> dict[str, int]:
    """Compile-time arguments of forward_kernel."""
    return {"SPLIT": SPLIT, **tile.constants(channels)}


def merge_constants(channels: int) -> dict[str, int]:
    """Compile-time arguments of merge_kernel."""
    return {"SPLIT": SPLIT, "BM": _MERGED, "D": channels, "WIDTH": width_of(channels)}


def slices_constants(tile: Tile, channels: int, stores: bool) -> dict[str, int]:
    """Compile-time arguments of slices_kernel."""
    return {"STORES": stores, **tile.constants(channels)}


def delta_constants(channels: int) -> dict[str, int]:
    """Compile-time arguments of delta_kernel."""
    return {"ROWS": _DELTAS, "D": channels, "WIDTH": width_of(channels)}


@triton.jit(do_not_specialize=["num_rows", "slots"])
def forward_kernel(
    seeds, k, v, out, lse, part, part_stats, offsets, items, num_rows, slots, number, heads,
    blocks, factor, seed_row, seed_head, k_row, k_head, v_row, v_head,
    SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * BM
    if item < tl.load(items) * heads:
        sample, begin, head = take(items, item, heads)
        start, length = sample_rows(offsets, sample, num_rows)
        k_base = k + start * k_row + head * k_head
        v_base = v + start * v_row + head * v_head
        q_tile = load_rows(seeds + head * seed_head, seed_row, first, number, BM, D, WIDTH)
        top = tl.full([BM], BANNED, tl.float32)
        total = tl.zeros([BM], tl.float32)
        result = tl.zeros([BM, WIDTH], tl.float32)
        for key in range(begin, tl.minimum(begin + SPLIT, length), BN):
            k_tile = load_rows(k_base, k_row, key, length, BN, D, WIDTH)
            v_tile = load_rows(v_base, v_row, key, length, BN, D, WIDTH)
            scores = products(q_tile, k_tile) * factor
            if key + BN > length:
                scores = tl.where((key + tl.arange(0, BN) < length)[None, :], scores, BANNED)
            top, total, result = read(scores, v_tile, top, total, result)
        rows = first + tl.arange(0, BM)
        if length <= SPLIT:
            result, row_lse = finish(top, total, result)
            at = sample.to(tl.int64) * number * heads + head
            store_rows(out + at * D, heads * D, first, number, result, BM, D, WIDTH)
            tl.store(lse + at + rows * heads, row_lse, mask=rows < number)
        elif item < slots * heads:  # offsets are not checked
            at = item.to(tl.int64) * number
            store_rows(part + at * D, D, first, number, result, BM, D, WIDTH)
            tl.store(part_stats + 2 * at + rows, top, mask=rows < number)
            tl.store(part_stats + 2 * at + number + rows, total, mask=rows < number)


@triton.jit(do_not_specialize=["num_rows", "slots"])
def merge_kernel(
    out, lse, part, part_stats, offsets, items, num_rows, slots, number, heads, blocks,
    SPLIT: tl.constexpr, BM: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Results of the samples that were split, their parts taken in order."""
    item = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * BM
    if item < tl.minimum(tl.load(items), slots) * heads:
        sample, begin, head = take(items, item, heads)
        _start, length = sample_rows(offsets, sample, num_rows)
        if (begin == 0) & (length > SPLIT):
            rows = first + tl.arange(0, BM)
            top = tl.full([BM], BANNED, tl.float32)
            total = tl.zeros([BM], tl.float32)
            result = tl.zeros([BM, WIDTH], tl.float32)
            for i in range(0, tl.minimum(tl.cdiv(length, SPLIT), slots - item // heads)):
                at = (item + i * heads).to(tl.int64) * number
                part_top = tl.load(part_stats + 2 * at + rows, mask=rows < number, other=BANNED)
                stats = part_stats + 2 * at + number + rows
                part_total = tl.load(stats, mask=rows < number, other=0.0)
                higher = tl.maximum(top, part_top)
                shrink, weight = tl.exp2(top - higher), tl.exp2(part_top - higher)
                total = total * shrink + part_total * weight
                values = load_rows(part + at * D, D, first, number, BM, D, WIDTH)
                result = result * shrink[:, None] + values * weight[:, None]
                top = higher
            result, row_lse = finish(top, total, result)
            at = sample.to(tl.int64) * number * heads + head
            store_rows(out + at * D, heads * D, first, number, result, BM, D, WIDTH)
            tl.store(lse + at + rows * heads, row_lse, mask=rows < number)


@triton.jit(do_not_specialize=["num_rows"])
def delta_kernel(
    grad, out, delta, num_rows, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """delta [num_rows] = sum of grad * out [num_rows, D] over channels."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    a = load_rows(grad, D, first, num_rows, ROWS, D, WIDTH).to(tl.float32)
    b = load_rows(out, D, first, num_rows, ROWS, D, WIDTH).to(tl.float32)
    rows = first + tl.arange(0, ROWS)
    tl.store(delta + rows, tl.sum(a * b, 1), mask=rows < num_rows)


@triton.jit
def _key_slopes(
    k_tile, v_tile, q_tile, grad_tile, lse, delta, stats, present, key, length, factor,
    BN: tl.constexpr,
):  # fmt: skip
    """Weights and gradients of the scores of a tile of keys, [BN, BM].

    Seeds past the last weigh 1 and meet zero gradients.
    """
    row_lse = tl.load(lse + stats, mask=present, other=0.0)
    row_delta = tl.load(delta + stats, mask=present, other=0.0)
    scores = products(k_tile, q_tile) * factor
    if key + BN > length:
        scores = tl.where((key + tl.arange(0, BN) < length)[:, None], scores, BANNED)
    weights = tl.exp2(scores - row_lse[None, :])
    return weights, weights * (products(v_tile, grad_tile) - row_delta[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def slices_kernel(
    grad, seeds, k, v, lse, delta, dk, dv, part, offsets, items, num_rows, number, heads,
    scale, factor, seed_row, seed_head, k_row, k_head, v_row, v_head,
    STORES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """The part of d seeds that a slice of all tiles of keys gives; with STORES dk and dv, too."""
    tiles = tl.load(items).to(tl.int64)
    begin = (tl.program_id(0) * tiles // tl.num_programs(0)).to(tl.int32)
    end = ((tl.program_id(0) + 1) * tiles // tl.num_programs(0)).to(tl.int32)
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(2) * BM
    rows = first + tl.arange(0, BM)
    q_tile = load_rows(seeds + head * seed_head, seed_row, first, number, BM, D, WIDTH)
    total = tl.zeros([WIDTH, BM], tl.float32)
    for tile in range(begin, end):
        sample, key = tl.load(items + 1 + 2 * tile), tl.load(items + 2 + 2 * tile)
        start, length = sample_rows(offsets, sample, num_rows)
        k_tile = load_rows(k + start * k_row + head * k_head, k_row, key, length, BN, D, WIDTH)
        v_tile = load_rows(v + start * v_row + head * v_head, v_row, key, length, BN, D, WIDTH)
        at = sample.to(tl.int64) * number * heads + head
        grad_tile = load_rows(grad + at * D, heads * D, first, number, BM, D, WIDTH)
        weights, slopes = _key_slopes(
            k_tile, v_tile, q_tile, grad_tile, lse, delta, at + rows * heads, rows < number,
            key, length, factor, BN,
        )  # fmt: skip
        slopes = slopes.to(q_tile.dtype)
        if STORES:
            to = (start * heads + head) * D
            none = tl.zeros([BN, WIDTH], tl.float32)
            dv_tile = add_product(weights, grad_tile, none)
            store_rows(dv + to, heads * D, key, length, dv_tile, BN, D, WIDTH)
            dk_tile = add_product(slopes, q_tile, none) * scale
            store_rows(dk + to, heads * D, key, length, dk_tile, BN, D, WIDTH)
        total = add_product(tl.trans(k_tile), slopes, total)
    to = part + (tl.program_id(0) * heads + head) * number * D
    store_rows(to, D, first, number, tl.trans(total) * scale, BM, D, WIDTH)


@triton.jit(do_not_specialize=["num_rows"])
def keys_kernel(
    grad, seeds, k, v, lse, delta, dk, dv, offsets, items, num_rows, number, heads,
    scale, factor, seed_row, seed_head, k_row, k_head, v_row, v_head,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys, read by all tiles of seeds."""
    item = tl.program_id(0)
    if item < tl.load(items) * heads:
        sample, key, head = take(items, item, heads)
        start, length = sample_rows(offsets, sample, num_rows)
        k_tile = load_rows(k + start * k_row + head * k_head, k_row, key, length, BN, D, WIDTH)
        v_tile = load_rows(v + start * v_row + head * v_head, v_row, key, length, BN, D, WIDTH)
        at = sample.to(tl.int64) * number * heads + head
        dk_tile = tl.zeros([BN, WIDTH], tl.float32)
        dv_tile = tl.zeros([BN, WIDTH], tl.float32)
        for first in range(0, number, BM):
            rows = first + tl.arange(0, BM)
            q_tile = load_rows(seeds + head * seed_head, seed_row, first, number, BM, D, WIDTH)
            grad_tile = load_rows(grad + at * D, heads * D, first, number, BM, D, WIDTH)
            weights, slopes = _key_slopes(
                k_tile, v_tile, q_tile, grad_tile, lse, delta, at + rows * heads, rows < number,
                key, length, factor, BN,
            )  # fmt: skip
            dv_tile = add_product(weights, grad_tile, dv_tile)
            dk_tile = add_product(slopes, q_tile, dk_tile)
        to = (start * heads + head) * D
        store_rows(dk + to, heads * D, key, length, dk_tile * scale, BN, D, WIDTH)
        store_rows(dv + to, heads * D, key, length, dv_tile, BN, D, WIDTH)
