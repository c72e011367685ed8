"""Variable-length sequences packed end to end: the one layout of every operator and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kunlun.errors import ShapeError


@dataclass(frozen=True)
class Jagged:
    """n sequences of different length without padding.

    values: [L, ...], the sequences one after another; L = sum of lengths.
    offsets: int32 or int64 [n + 1]; sequence i is values[offsets[i]:offsets[i + 1]].
    max_len: the configured cap, never the longest of this batch (that would sync the host,
        recompile, and make a score depend on its neighbours).
    """

    values: Tensor
    offsets: Tensor
    max_len: int

    @property
    def n(self) -> int:
        """Number of sequences."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """[n], dtype of offsets."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def segments(self) -> Tensor:
        """Sequence index of every packed row, int64 [L]."""
        index = torch.arange(self.n, device=self.offsets.device)
        return torch.repeat_interleave(index, self.lengths, output_size=self.values.shape[0])

    def with_values(self, values: Tensor) -> Jagged:
        """Same sequences, other contents ([L, ...] with the same L)."""
        return Jagged(values, self.offsets, self.max_len)

    def select(self, index: Tensor) -> Jagged:
        """Sequences index[0], index[1], ...; index int64 [m], repeats allowed."""
        lengths = self.lengths.long()[index]
        offsets = torch.zeros(index.shape[0] + 1, dtype=torch.int64, device=index.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        start = self.offsets.long()[index] - offsets[:-1]
        rows = torch.repeat_interleave(start, lengths)
        rows = rows + torch.arange(rows.shape[0], device=rows.device)
        return Jagged(self.values[rows], offsets, self.max_len)

    def newest_places(self, keep: int) -> Tensor:
        """Where the last `keep` rows of every sequence lie, int64 [sum of min(length, keep)]."""
        row = torch.arange(self.values.shape[0], device=self.offsets.device)
        if keep == 0:
            return row[:0]
        if keep >= self.max_len:
            return row
        behind = self.offsets.long()[1:].index_select(0, self.segments) - row
        return row[behind <= keep]

    def shortened(self, values: Tensor, keep: int) -> Jagged:
        """The sequences of the rows that `newest_places` names, around their `values`."""
        if keep >= self.max_len:
            return self.with_values(values)
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(self.lengths.clamp(max=keep), 0, out=offsets[1:])
        return Jagged(values, offsets, keep)

    def to(self, device: Any, non_blocking: bool = False) -> Jagged:
        """Copy on another device."""
        return Jagged(
            self.values.to(device, non_blocking=non_blocking),
            self.offsets.to(device, non_blocking=non_blocking),
            self.max_len,
        )

    def pin_memory(self) -> Jagged:
        """Copy in page-locked host memory."""
        return Jagged(self.values.pin_memory(), self.offsets.pin_memory(), self.max_len)

    def to_padded(self, length: int | None = None, fill: float = 0) -> Tensor:
        """[n, length, ...] with `fill` behind each sequence; for interoperability, not for models.

        length None means max_len. Raises ShapeError if a sequence is longer.
        """
        length = self.max_len if length is None else length
        if self.n and int(self.lengths.max()) > length:
            longest = int(self.lengths.max())
            raise ShapeError(f"length: a sequence has {longest} rows, more than {length}")
        padded = self.values.new_full((self.n, length, *self.values.shape[1:]), fill)
        column = torch.arange(self.values.shape[0], device=self.values.device)
        column = column - self.offsets.long()[self.segments]
        padded[self.segments, column] = self.values
        return padded

    @staticmethod
    def from_padded(padded: Tensor, lengths: Tensor) -> Jagged:
        """[n, T, ...] and int [n] -> Jagged with max_len T; rows behind each length are dropped."""
        offsets = torch.zeros(padded.shape[0] + 1, dtype=torch.int64, device=padded.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        keep = torch.arange(padded.shape[1], device=padded.device)[None, :] < lengths[:, None]
        return Jagged(padded[keep], offsets, padded.shape[1])

    @staticmethod
    def from_sequences(sequences: Sequence[Tensor], max_len: int) -> Jagged:
        """A list of [T_i, ...] tensors -> Jagged; at least one sequence, each at most max_len."""
        lengths = [int(s.shape[0]) for s in sequences]
        if max(lengths) > max_len:
            raise ShapeError(
                f"sequences: the longest has {max(lengths)} rows, max_len is {max_len}"
            )
        offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
        return Jagged(torch.cat(list(sequences)), offsets.to(sequences[0].device), max_len)

    def to_nested(self) -> Tensor:
        """torch.nested tensor (jagged layout) over the same memory."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets.long())

    @staticmethod
    def from_nested(nested: Tensor, max_len: int) -> Jagged:
        """Inverse of to_nested."""
        return Jagged(nested.values(), nested.offsets(), max_len)  # type: ignore[attr-defined]
