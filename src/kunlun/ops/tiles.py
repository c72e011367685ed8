"""Cutting a jagged batch into tiles of equally long samples, without padding to the longest.

Samples whose lengths fall into one bucket form a tile [G * H, T, D] that batched matrix products
take. A bucket is a function of a sample's own length, so the shape of its products, and with
them its bits, do not depend on its neighbours. Rows are read by an index and results return by
its inverse: every output row is written once, nothing is scattered or accumulated.

Legend: G samples of a tile, T padded rows of each, H heads, P rows of all tiles together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCORES = 64 * 1024
"""Scores of a tile: a few buffers of it stay in a core's cache, and dwarf the cost of a call."""

_GATHER_EXACT = 256  # longer samples fill a tile alone, so rounding their length gains nothing


@dataclass(frozen=True)
class Rows:
    """The rows of one operand in one tile, ordered [G, H, T]."""

    heads: int
    length: int
    first: int
    index: Tensor  # [G * H * T] into the operand's [L * H] rows; padding repeats the last row
    padding: Tensor | None  # positions of the padding in `index`

    def load(self, rows: Tensor, *, zero_padding: bool = False) -> Tensor:
        """[L * H, D] -> [G * H, T, D] in the dtype we compute in.

        Padding holds the sample's own last row (never a neighbour's), or zeros where asked.
        """
        tile = rows.index_select(0, self.index)
        if zero_padding and self.padding is not None:
            tile.index_fill_(0, self.padding, 0)
        return tile.to(compute_dtype(rows.dtype)).view(-1, self.length, rows.shape[1])

    def slot(self, buffer: Tensor) -> Tensor:
        """This tile's [G * H, T, D] part of a buffer made by Packing.buffer."""
        part = buffer[self.first : self.first + self.index.shape[0]]
        return part.view(-1, self.length, buffer.shape[1])


@dataclass(frozen=True)
class Packing:
    """How the packed rows of one operand spread over the tiles."""

    tiles: tuple[Rows, ...]
    inverse: Tensor  # [L * H]: where each packed row lies in a buffer; P = a row of zeros

    def buffer(self, like: Tensor, width: int) -> Tensor:
        """[P + 1, width] for the tiles' results; the last row is zero."""
        size = self.tiles[-1].first + self.tiles[-1].index.shape[0] if self.tiles else 0
        buffer = like.new_empty((size + 1, width), dtype=compute_dtype(like.dtype))
        buffer[size] = 0
        return buffer

    def unpack(self, buffer: Tensor, like: Tensor) -> Tensor:
        """A filled buffer -> packed rows in the shape and dtype of `like`; absent rows are 0."""
        return buffer.index_select(0, self.inverse).to(like.dtype).view(*like.shape)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is stored, float32 is computed."""
    return dtype if dtype == torch.float64 else torch.float32


def packed(x: Tensor) -> Tensor:
    """[L, H, ...] -> [L * H, D], a view where strides allow."""
    return x.reshape(x.shape[0] * x.shape[1], -1)


def bucket(lengths: Tensor, exact: int = 16) -> Tensor:
    """Lengths rounded up by less than 12.5 %; up to `exact` and above 256 they stay.

    2^(e-1) < length <= 2^e is rounded to a multiple of 2^(e-4).
    """
    exponent = torch.frexp((lengths - 1).clamp(min=1).double())[1]
    step = torch.ones_like(lengths) << (exponent - 4).clamp(min=0)
    rounded = (lengths + step - 1) // step * step
    keep = (lengths <= exact) | (lengths > _GATHER_EXACT)
    return torch.where(keep, lengths, rounded)


def group(keys: Tensor) -> list[tuple[int, Tensor]]:
    """Samples of equal key: [(key, sample indices ascending), ...] by ascending key."""
    ordered, order = torch.sort(keys, stable=True)
    values, counts = torch.unique_consecutive(ordered, return_counts=True)
    return list(zip(values.tolist(), order.split(counts.tolist()), strict=True))


def pack(
    offsets: Tensor, heads: int, groups: list[tuple[Tensor, int, int]], device: torch.device
) -> Packing:
    """Index and inverse of one operand.

    offsets: int64 [n + 1] on the host. groups: (sample indices, padded length T, samples a tile).
    """
    starts, lengths, n_rows = offsets[:-1], offsets.diff(), int(offsets[-1]) * heads
    tiles: list[Rows] = []
    inverse = torch.empty(n_rows, dtype=torch.int64)
    first = 0
    head = torch.arange(heads)[None, :, None]
    indices, positions, sources = [], [], []
    for samples, length, per_tile in groups:
        own = lengths[samples][:, None, None]
        column = torch.arange(length)[None, None, :]
        row = starts[samples][:, None, None] + torch.minimum(column, own - 1)
        index = (row * heads + head).reshape(len(samples), -1)
        padded = (column >= own).expand(-1, heads, -1).reshape(len(samples), -1)
        has_padding = bool(padded.any())
        position = torch.arange(first, first + index.numel())
        positions.append(position[~padded.flatten()] if has_padding else position)
        sources.append(index[~padded] if has_padding else index.flatten())
        for part, gap in zip(index.split(per_tile), padded.split(per_tile), strict=True):
            padding = gap.flatten().nonzero().flatten() if has_padding else None
            if padding is not None and not padding.numel():
                padding = None
            indices.append(part.flatten())
            tiles.append(
                Rows(
                    heads,
                    length,
                    first,
                    part.flatten().to(device),
                    None if padding is None else padding.to(device),
                )
            )
            first += part.numel()
    inverse.fill_(first)
    if sources:
        inverse[torch.cat(sources)] = torch.cat(positions)
    return Packing(tuple(tiles), inverse.to(device))


def fold(tile: Tensor, part: slice, share: int) -> Tensor:
    """Rows `part` of [G * H, T, D] as [N, R, D]; heads that read the same keys stand together."""
    rows = tile[:, part]
    if share == 1:
        return rows
    return rows.reshape(tile.shape[0] // share, -1, tile.shape[2])


def store(tile: Tensor, part: slice, share: int, rows: Tensor) -> None:
    """Inverse of fold."""
    tile[:, part] = rows.view(tile.shape[0], -1, tile.shape[2])


def product(a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    """factor * a b; the factor costs nothing inside the product."""
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)
