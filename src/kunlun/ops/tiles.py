"""Cutting a jagged batch into tiles of equally long samples, without padding to the longest.

Samples whose lengths fall into one bucket form a tile [G * H, T, D] that batched matrix products
take. A bucket is a function of a sample's own length, so the shape of its products, and with
them its bits, do not depend on its neighbours. Tiles are read by an index and written by one:
every packed row is written once and nothing is accumulated across tiles.

Legend: G samples of a tile, T padded rows of each, H heads, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SCORES = 128 * 1024
"""Scores of a tile: a few buffers of it stay in a core's cache, and dwarf the cost of a call."""

_VECTORS = 64  # a multiple of the elements torch's vectorized loops take at a time

_LONGEST_BUCKET = 256  # longer samples fill a tile alone, so rounding their length gains nothing


@dataclass(frozen=True)
class Rows:
    """The rows of one operand in one tile, ordered [G, H, T]."""

    samples: int
    heads: int
    length: int
    start: int  # first row among the operand's [L * H], where the tile is one sample
    index: Tensor | None  # [G * H * T] into these rows, padding repeats the last; None: a slice
    target: Tensor | None  # the same for writing; padding goes to the spare row L * H
    padding: Tensor | None  # positions of the padding in `index`

    def load(self, rows: Tensor, *, zero_padding: bool = False) -> Tensor:
        """[L * H, D] -> [G * H, T, D] in the dtype we compute in.

        Padding holds the sample's own last row (never a neighbour's), or zeros where asked.
        """
        if self.index is None:
            return self._slice(rows).to(compute_dtype(rows.dtype))
        tile = rows.index_select(0, self.index)
        if zero_padding and self.padding is not None:
            tile.index_fill_(0, self.padding, 0)
        return tile.to(compute_dtype(rows.dtype)).view(-1, self.length, rows.shape[1])

    def save(self, tile: Tensor, into: Tensor, part: slice = slice(None)) -> None:
        """Rows `part` of the tile, [G * H, t, D] -> their rows of a result of Packing.result."""
        if self.target is None:
            rows = self._slice(into)[:, part]
            rows.copy_(tile.view(rows.shape))
        else:
            target = self.target.view(-1, self.length)[:, part].reshape(-1)
            into.index_copy_(0, target, tile.reshape(-1, into.shape[1]).to(into.dtype))

    def save_product(
        self, a: Tensor, b: Tensor, factor: float, into: Tensor, part: slice = slice(None)
    ) -> None:
        """Saves factor * a b, in one step where the rows are a slice of the result."""
        if self.target is None and a.shape[0] == self.heads and a.dtype == into.dtype:
            rows = self._slice(into)[:, part]
            torch.baddbmm(rows, a, b, beta=0, alpha=factor, out=rows)
        else:
            self.save(product(a, b, factor), into, part)

    def _slice(self, rows: Tensor) -> Tensor:
        part = rows[self.start : self.start + self.length * self.heads]
        return part.view(self.length, self.heads, rows.shape[1]).transpose(0, 1)


@dataclass(frozen=True)
class Packing:
    """How the packed rows of one operand spread over the tiles."""

    tiles: tuple[Rows, ...]
    rows: int  # L * H
    complete: bool  # every row lies in some tile

    def result(self, like: Tensor, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """[L * H + 1, width] for the tiles to save into; rows in no tile are zero."""
        make = like.new_empty if self.complete else like.new_zeros
        return make((self.rows + 1, width), dtype=dtype or like.dtype)


def unpacked(result: Tensor, *shape: int) -> Tensor:
    """A filled result without its spare row, in the shape asked for."""
    return result[:-1].view(shape)


def packed(x: Tensor) -> Tensor:
    """[L, H, D] -> [L * H, D], a view where strides allow."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is stored, float32 is computed."""
    return dtype if dtype == torch.float64 else torch.float32


def bucket(lengths: Tensor, exact: int = 16) -> Tensor:
    """Lengths rounded up by less than 12.5 %; up to `exact` and above 256 they stay.

    2^(e-1) < length <= 2^e is rounded to a multiple of 2^(e-4).
    """
    exponent = torch.frexp((lengths - 1).clamp(min=1).double())[1]
    step = torch.ones_like(lengths) << (exponent - 4).clamp(min=0)
    rounded = (lengths + step - 1) // step * step
    keep = (lengths <= exact) | (lengths > _LONGEST_BUCKET)
    return torch.where(keep, lengths, rounded)


def group(keys: Tensor) -> list[tuple[int, Tensor]]:
    """Samples of equal key: [(key, sample indices ascending), ...] by ascending key."""
    ordered, order = torch.sort(keys, stable=True)
    values, counts = torch.unique_consecutive(ordered, return_counts=True)
    return list(zip(values.tolist(), order.split(counts.tolist()), strict=True))


def pack(
    offsets: Tensor, heads: int, groups: list[tuple[Tensor, int, int]], device: torch.device
) -> Packing:
    """The tiles of one operand.

    offsets: int64 [n + 1] on the host. groups: (sample indices, padded length T, samples a tile).
    """
    lengths = offsets.diff()
    tiles: list[Rows] = []
    covered, rows = 0, int(offsets[-1])
    for samples, length, per_tile in groups:
        own = lengths[samples]
        covered += int(own.sum())
        tiles += _rows(offsets[samples], own, heads, length, per_tile, rows * heads, device)
    return Packing(tuple(tiles), rows * heads, covered == rows)


def _rows(
    starts: Tensor,
    own: Tensor,
    heads: int,
    length: int,
    per_tile: int,
    spare: int,
    device: torch.device,
) -> Iterator[Rows]:
    """The tiles of one group: samples at `starts` of `own` rows each, padded to `length`."""
    column = torch.arange(length)
    absent = column >= own[:, None]
    padded = bool(absent.any())
    # By its own length alone: a slice's products need not be bit-equal to those of an index.
    sliced = [per_tile == 1 and n == length for n in own.tolist()]
    if all(sliced):
        for start in starts.tolist():
            yield Rows(1, heads, length, start * heads, None, None, None)
        return
    row = starts[:, None] + (torch.minimum(column, own[:, None] - 1) if padded else column)
    index = (row[:, None] * heads + torch.arange(heads)[:, None]).to(device)  # [n, H, T]
    if not padded:
        for part in index.split(per_tile):
            yield Rows(len(part), heads, length, 0, part.flatten(), part.flatten(), None)
        return
    gaps = absent[:, None].expand(-1, heads, -1).to(device)
    target = index.masked_fill(gaps, spare)
    parts = zip(*(x.split(per_tile) for x in (index, target, gaps)), strict=True)
    for i, (part, part_target, part_gaps) in enumerate(parts):
        if sliced[i]:
            yield Rows(1, heads, length, int(starts[i]) * heads, None, None, None)
            continue
        padding = part_gaps.flatten().nonzero().flatten()
        yield Rows(len(part), heads, length, 0, part.flatten(), part_target.flatten(), padding)


def slices(rows: int, scores_a_row: int, least: int) -> Iterator[slice]:
    """Cuts a tile that is larger than it should be (one long sample) along its rows."""
    step = max(least, SCORES // scores_a_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def room(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory for a tile, filled up to whole vectors; see whole."""
    size = math.prod(shape)
    return like.new_empty(-(-size // _VECTORS) * _VECTORS)[:size].view(shape)


def whole(tile: Tensor) -> Tensor:
    """All the memory behind a tile made by room, flat, for element-wise functions.

    Torch computes the last elements, those that fill no vector, by scalar code whose bits differ.
    Which ones are last must not depend on how many samples share the tile.
    """
    size = tile.numel()
    return tile.as_strided((-(-size // _VECTORS) * _VECTORS,), (1,))


def product(a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    """factor * a b in memory made by room; the factor costs nothing inside the product."""
    out = room(a, a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


def fold(tile: Tensor, part: slice, share: int) -> Tensor:
    """Rows `part` of [G * H, T, D] as [N, R, D]; heads that read the same keys stand together."""
    rows = tile[:, part]
    if share == 1:
        return rows
    return rows.reshape(tile.shape[0] // share, -1, tile.shape[2])


def join(parts: list[Tensor], products: int) -> Tensor:
    """Results [N, R, D] of all parts of a tile -> [G * H, T, D], `products` = G * H."""
    unfolded = [part.view(products, -1, part.shape[2]) for part in parts]
    return unfolded[0] if len(unfolded) == 1 else torch.cat(unfolded, dim=1)
