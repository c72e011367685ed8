"""Window attention of one long sample: blocks of query rows, each against a window of keys.

Half a window of rows is a block, which makes about 1.25 scores for each that counts (1.5 where
causal) with windows of 32 to 256. Its keys reach `margin` rows to both sides (to the left alone
where causal). All heads' keys stand in one line with zeros around it, so that the keys of
consecutive blocks are overlapping views of it at one stride, even from a head to the next, and many
blocks are one batched product. Nothing here depends on other samples, so no step has to guard its
bits against them. Within a sample a head's last rows meet the next head's first ones at weight 0,
so a NaN or infinity may pass from the one to the other.

Legend: N = Hkv * count blocks, R rows of a block for each of the S heads that read one key head,
K key rows of a block, D width. Scores lie as [N, K, S * R].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kunlun.ops.softmax import BANNED, LOG2_E
from kunlun.ops.tiles import compute_dtype

_SCORES = 112 * 1024  # alive at a time
_LEAST_ROWS, _MOST_ROWS = 16, 128  # of a block


@lru_cache(maxsize=256)
def band(
    rows: int, keys: int, shift: int, window: int, causal: bool, device: torch.device
) -> Tensor:
    """[K, 1, R]: 0 inside the band, else BANNED; query row i stands at key row i + shift."""
    distance = torch.arange(keys)[:, None] - torch.arange(rows)[None, :] - shift
    outside = distance.abs() > window
    if causal:
        outside |= distance > 0
    return torch.zeros(keys, rows).masked_fill_(outside, BANNED)[:, None].to(device)


class Chunk(NamedTuple):
    """Blocks whose scores are alive together, and which of their scores lie outside the sample:
    (blocks, key rows of these)."""

    blocks: slice
    outside: tuple[tuple[slice, slice], ...]


@dataclass(frozen=True)
class Blocks:
    """How one sample, rows `start` to `start + length` of the batch, is cut.

    share: query heads that read one key head.
    """

    start: int
    length: int
    kv_heads: int
    share: int
    window: int
    causal: bool

    @cached_property
    def rows(self) -> int:
        return min(max(-(-self.window // 2), _LEAST_ROWS), _MOST_ROWS)

    @cached_property
    def margin(self) -> int:
        """The window in whole blocks."""
        return -(-self.window // self.rows) * self.rows

    @cached_property
    def keys(self) -> int:
        return self.rows + self.margin * (1 if self.causal else 2)

    @cached_property
    def count(self) -> int:
        """Blocks of a head."""
        return -(-self.length // self.rows)

    def cut(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """x [L, H, D] -> factor * its rows as [N, S * R, D], zero beyond the sample's end."""
        size = (self.kv_heads * self.count, x.shape[1] // self.kv_heads * self.rows, x.shape[2])
        blocks = x.new_empty(size, dtype=compute_dtype(x.dtype))
        self._fill(blocks, x, factor)
        return blocks

    def line(self, x: Tensor) -> Tensor:
        """x [L, Hkv, D] -> [margin + Hkv * count * R + margin, D], zero where there is no row."""
        rows = self.kv_heads * self.count * self.rows + 2 * self.margin
        line = x.new_empty((rows, x.shape[2]), dtype=compute_dtype(x.dtype))
        line[: self.margin].zero_()
        line[rows - self.margin :].zero_()
        self._fill(self.inner(line), x, 1.0)
        return line

    def inner(self, line: Tensor) -> Tensor:
        """A line without its margins; save takes it."""
        return line[self.margin : len(line) - self.margin]

    def save(self, blocks: Tensor, into: Tensor, factor: float = 1.0) -> None:
        """factor * blocks [N, S * R, D] -> their rows of [L, H, D]."""
        for own, part in self._pairs(into, blocks):
            torch.mul(part, factor, out=own)

    def windows(self, line: Tensor, chunk: slice) -> Tensor:
        """[N, K, D]: the key rows of the blocks of a chunk, views that overlap."""
        width, first = line.shape[1], chunk.start * self.rows
        size = (chunk.stop - chunk.start, self.keys, width)
        return line.as_strided(size, (self.rows * width, width, 1), first * width)

    def add_windows_(self, line: Tensor, chunk: slice, a: Tensor, b: Tensor) -> None:
        """Adds a [N, K, S * R] times b [N, S * R, D] to the windows of a line, blocks whose
        windows do not overlap at a time."""
        into, apart = self.windows(line, chunk), self.keys // self.rows
        for first in range(min(apart, len(a))):
            part = into[first::apart]
            torch.baddbmm(part, a[first::apart], b[first::apart], out=part)

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All blocks, in equal parts."""
        blocks = self.kv_heads * self.count
        parts = -(-blocks * self.keys * self.rows * self.share // _SCORES)
        step = -(-blocks // parts)
        ends = [(first, min(first + step, blocks)) for first in range(0, blocks, step)]
        return [Chunk(slice(*part), self._outside(*part)) for part in ends]

    def _outside(self, first: int, last: int) -> tuple[tuple[slice, slice], ...]:
        """Key rows outside the sample: (blocks at one place of each head, key rows of these)."""
        found = []
        for block in range(first, min(last, first + self.count)):
            start = block % self.count * self.rows - self.margin  # of its keys
            same = slice(block - first, last - first, self.count)
            if start < 0:
                found.append((same, slice(0, -start)))
            if start + self.keys > self.length:
                found.append((same, slice(max(self.length - start, 0), self.keys)))
        return tuple(found)

    def ban_(self, scores: Tensor, outside: tuple[tuple[slice, slice], ...]) -> None:
        """Bans what lies outside the band or the sample, in scores [N, K, S * R]."""
        bias = band(self.rows, self.keys, self.margin, self.window, self.causal, scores.device)
        scores.view(-1, self.keys, self.share, self.rows).add_(bias.to(scores.dtype))
        for where in outside:
            scores[where].fill_(BANNED)

    def _fill(self, blocks: Tensor, x: Tensor, factor: float) -> None:
        share, rest = x.shape[1] // self.kv_heads, self.length - (self.count - 1) * self.rows
        if rest < self.rows:
            last = blocks.view(self.kv_heads, self.count, share, self.rows, -1)[:, -1]
            last[:, :, rest:].zero_()
        for own, part in self._pairs(x, blocks):
            torch.mul(own.to(part.dtype), factor, out=part)

    def _pairs(self, x: Tensor, blocks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same rows of x [L, H, D] and of blocks: all of them, or full blocks and the last."""
        own, width = x[self.start : self.start + self.length], x.shape[2]
        share = x.shape[1] // self.kv_heads
        if share == 1:
            yield own.transpose(0, 1), blocks.view(self.kv_heads, -1, width)[:, : self.length]
            return
        shape = (self.kv_heads, share, width)
        blocks = blocks.view(self.kv_heads, self.count, share, self.rows, width)
        full, rest = divmod(self.length, self.rows)
        whole = own[: full * self.rows].view(full, self.rows, *shape)
        yield whole.permute(2, 0, 3, 1, 4), blocks[:, :full]
        if rest:
            last = own[full * self.rows :].view(rest, *shape)
            yield last.permute(1, 2, 0, 3), blocks[:, full, :, :rest]


def worth(lengths: Tensor, heads: int, window: int, causal: bool) -> Tensor:
    """lengths int64 [n] -> bool [n]: which samples are faster in blocks than in dense tiles, which
    many short ones can share."""
    keys = Blocks(start=0, length=0, kv_heads=1, share=1, window=window, causal=causal).keys
    return (2 * lengths >= 3 * keys) & (lengths * heads * keys >= _SCORES)


def forward(
    blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor
) -> None:
    """Fills the sample's rows of out [L, H, D] and lse [L, H, 1]."""
    queries = blocks.cut(q, scale * LOG2_E)
    keys, values = blocks.line(k), blocks.line(v)
    results, sums = torch.empty_like(queries), queries.new_empty(len(queries), 1, queries.shape[1])
    for chunk, outside in blocks.chunks:
        scores = torch.bmm(blocks.windows(keys, chunk), queries[chunk].mT)
        blocks.ban_(scores, outside)
        top = scores.amax(1, keepdim=True)
        total = scores.sub_(top).exp2_().sum(1, keepdim=True)
        result = results[chunk]
        torch.bmm(scores.mT, blocks.windows(values, chunk), out=result)
        result.div_(total.mT)
        torch.add(top, total.log2_(), out=sums[chunk])
    blocks.save(results, out)
    blocks.save(sums.mT, lse)


def backward(
    blocks: Blocks,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fills the sample's rows of dq [L, H, D], dk, dv [L, Hkv, D]; lse, delta [L, H, 1]."""
    queries, grads = blocks.cut(q, scale * LOG2_E), blocks.cut(grad)
    base, shift = (blocks.cut(x).mT for x in (lse, delta))
    keys, values = blocks.line(k), blocks.line(v)
    dq, dk, dv = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
    for chunk, outside in blocks.chunks:
        key, value = blocks.windows(keys, chunk), blocks.windows(values, chunk)
        weights = torch.bmm(key, queries[chunk].mT)
        blocks.ban_(weights, outside)
        weights.sub_(base[chunk]).exp2_()
        slope = torch.bmm(value, grads[chunk].mT).sub_(shift[chunk]).mul_(weights)
        torch.bmm(slope.mT, key, out=dq[chunk])
        blocks.add_windows_(dk, chunk, slope, queries[chunk])
        blocks.add_windows_(dv, chunk, weights, grads[chunk])
    blocks.save(dq, into[0], scale)
    blocks.save(blocks.inner(dk), into[1], 1 / LOG2_E)
    blocks.save(blocks.inner(dv), into[2])
