"""What the kernels share: tile sizes, work lists made on the device, loads and stores of rows.

A work list names the tiles of all samples, most work first, so that programs that start late get
small ones. Only its bound is known on the host; the device fills it in and no kernel launch waits
for the lengths.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """Tile sizes and launch settings of one kernel."""

    rows: int  # queries a tile
    keys: int  # keys a tile
    warps: int
    stages: int  # of the software pipeline
    programs: int  # an SM holds at once: what registers and shared memory allow

    def settings(self) -> dict[str, int]:
        """Launch settings. Fused multiply-adds are asked for: Triton's default changes in 3.10."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


class WorkList(NamedTuple):
    """int32 `items` [buckets, 1 + 2 * bound] a bucket: the count, then (sample, first row) pairs.

    What follows the counted pairs is not written. Offsets that no `rows` packed rows can have never
    make a list longer than its bound.
    """

    items: Tensor
    bound: int


def rows_of(x: Tensor) -> Tensor:
    """[rows, heads, channels] with channels side by side."""
    return x if x.stride(2) == 1 else x.contiguous()


def width_of(channels: int) -> int:
    """Channels of a tile that holds `channels`: a power of two that a matrix product takes."""
    return max(16, int(triton.next_power_of_2(channels)))


def grid(device: torch.device, programs: int, items: int) -> tuple[int]:
    """Programs to launch: what the device holds at once, never more than there are items.

    Each takes items from its own number on, in steps of the number of programs.
    """
    if device.type != "cuda":
        return (min(items, 3),)  # in the interpreter: a few, so that the steps are tested
    return (min(items, programs * torch.cuda.get_device_properties(device).multi_processor_count),)


def work_list(
    offsets: Tensor,
    rows: int,
    tile: int,
    *,
    work: Tensor | None = None,
    bucket_by: Tensor | None = None,
    buckets: int = 1,
    at_least_one: bool = False,
) -> WorkList:
    """Lists the tiles of all samples without waiting for the device.

    Args:
        offsets: int32 or int64 [B + 1], contiguous, on the device; tiles are cut from its samples.
        rows: packed rows that offsets describes.
        tile: rows a tile.
        work: offsets of the lengths that order samples, longest first; by default `offsets`.
        bucket_by: offsets of the lengths that sort samples into buckets: <= 64, <= 128, ...
            and all others in the last bucket; by default `offsets`.
        buckets: how many; each gets a row of the list.
        at_least_one: gives a sample without rows one tile, too.
    """
    samples = offsets.shape[0] - 1
    bound = (rows + samples * (tile - 1)) // tile
    bound = min(rows, bound) + (samples if at_least_one else 0)
    items = torch.empty((buckets, 1 + 2 * bound), dtype=torch.int32, device=offsets.device)
    block = 64
    list_tiles[(max(1, triton.cdiv(samples, block)), buckets)](
        offsets,
        offsets if work is None else work,
        offsets if bucket_by is None else bucket_by,
        items,
        samples,
        tile,
        bound,
        items.stride(0),
        BUCKETS=buckets,
        AT_LEAST_ONE=at_least_one,
        BLOCK=block,
        enable_fp_fusion=True,
    )
    return WorkList(items, bound)


@triton.jit
def _lengths(offsets, samples, index):
    inside = index < samples
    start = tl.load(offsets + index, mask=inside, other=0)
    end = tl.load(offsets + index + 1, mask=inside, other=0)
    return tl.minimum(tl.maximum(end - start, 0), 1 << 30).to(tl.int32)


@triton.jit
def _tile_counts(
    offsets,
    bucket_by,
    samples,
    tile,
    bound,
    index,
    BUCKETS: tl.constexpr,
    AT_LEAST_ONE: tl.constexpr,
):
    counts = tl.minimum(tl.cdiv(_lengths(offsets, samples, index), tile), bound)
    if AT_LEAST_ONE:
        counts = tl.maximum(counts, 1)
    chosen = index < samples
    if BUCKETS > 1:
        bucket = tl.program_id(1)
        size = _lengths(bucket_by, samples, index)
        chosen &= (bucket == 0) | (size > (32 << bucket))
        chosen &= (bucket == BUCKETS - 1) | (size <= (64 << bucket))
    return tl.where(chosen, counts, 0)


@triton.jit(do_not_specialize=["samples", "tile", "bound", "stride"])
def list_tiles(
    offsets,
    work,
    bucket_by,
    items,
    samples,
    tile,
    bound,
    stride,
    BUCKETS: tl.constexpr,
    AT_LEAST_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See work_list. Sorts by counting what stands before: the batch is small.

    Nothing is stored beyond `bound` tiles: the host has not looked at the offsets.
    """
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own_work = _lengths(work, samples, mine)
    before = tl.zeros([BLOCK], tl.int32)
    total = 0
    for start in range(0, samples, BLOCK):
        others = start + tl.arange(0, BLOCK)
        counts = _tile_counts(
            offsets, bucket_by, samples, tile, bound, others, BUCKETS, AT_LEAST_ONE
        )
        others_work = _lengths(work, samples, others)
        tie = (others_work[None, :] == own_work[:, None]) & (others[None, :] < mine[:, None])
        first = (others_work[None, :] > own_work[:, None]) | tie
        before += tl.sum(tl.where(first, counts[None, :], 0), axis=1)
        total += tl.sum(counts, axis=0)
    row = items + tl.program_id(1).to(tl.int64) * stride
    if tl.program_id(0) == 0:
        tl.store(row, tl.minimum(total, bound))
    counts = _tile_counts(offsets, bucket_by, samples, tile, bound, mine, BUCKETS, AT_LEAST_ONE)
    for i in range(0, tl.max(counts, axis=0)):
        place = row + 1 + 2 * (before + i)
        inside = (i < counts) & (before + i < bound)
        tl.store(place, mine, mask=inside)
        tl.store(place + 1, tl.zeros([BLOCK], tl.int32) + i * tile, mask=inside)


@triton.jit
def sample_rows(offsets, sample, rows):
    """(first packed row, number of rows) of a sample, int64 and int32.

    Kept inside the tensor: the host has not looked at the offsets.
    """
    start = tl.maximum(tl.load(offsets + sample).to(tl.int64), 0)
    end = tl.minimum(tl.load(offsets + sample + 1).to(tl.int64), rows)
    return start, tl.maximum(end - start, 0).to(tl.int32)


@triton.jit
def moving(row_stride, number):
    """The same stride, but not to the compiler, which cannot know that `number` is below 2^30.

    With a number of the innermost loop around, the addresses of a tile are computed where they are
    used. Otherwise the compiler does it once before the loops and keeps them all in registers,
    about 40 a thread, that the tiles themselves need.
    """
    return row_stride + (number >> 30) * 16


@triton.jit
def load_rows(
    base, row_stride, first, length, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr
):
    """[ROWS, WIDTH] from row `first` of a sample of `length` rows at `base`; 0 outside.

    `first` reaches the address as one 64-bit scalar, the rest are small 32-bit offsets.
    """
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    places = rows[:, None] * row_stride + columns[None, :]
    inside = (first + rows < length)[:, None]
    if D < WIDTH:
        inside = inside & (columns < D)[None, :]
    return tl.load(base + tl.cast(first, tl.int64) * row_stride + places, mask=inside, other=0.0)


@triton.jit
def store_rows(
    base,
    row_stride,
    first,
    length,
    values,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The inverse of load_rows, rounded to the type behind `base`."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    places = rows[:, None] * row_stride + columns[None, :]
    inside = (first + rows < length)[:, None]
    if D < WIDTH:
        inside = inside & (columns < D)[None, :]
    where = base + tl.cast(first, tl.int64) * row_stride + places
    tl.store(where, values.to(base.dtype.element_ty), mask=inside)


# Fixed when the kernels are decorated, whatever the environment says later.
INTERPRETED = not isinstance(list_tiles, triton.JITFunction)
