"""Jagged: selecting sequences, and the ways in and out of other layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kunlun.errors import ShapeError
from kunlun.ops import Jagged

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def make(lengths: list[int]) -> tuple[Jagged, list[torch.Tensor]]:
    """A layout and its sequences, every row told apart."""
    rows = torch.arange(2.0 * sum(lengths)).view(-1, 2)
    sequences = list(rows.split(lengths))
    return Jagged.from_sequences(sequences, max_len=5), sequences


@given(LENGTHS)
def test_offsets_lengths_and_segments(lengths: list[int]) -> None:
    s, sequences = make(lengths)
    assert s.n == len(lengths)
    assert s.lengths.tolist() == lengths
    assert s.segments.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    for i, own in enumerate(sequences):
        assert torch.equal(s.values[s.offsets[i] : s.offsets[i + 1]], own)


@given(LENGTHS, st.data())
def test_select_takes_sequences_in_any_order_and_again(
    lengths: list[int], data: st.DataObject
) -> None:
    s, sequences = make(lengths)
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    taken = s.select(torch.tensor(index))
    assert torch.equal(taken.values, torch.cat([sequences[i] for i in index]))
    assert taken.lengths.tolist() == [lengths[i] for i in index]


@given(LENGTHS)
def test_padded_and_back(lengths: list[int]) -> None:
    s, sequences = make(lengths)
    padded = s.to_padded(fill=-1)
    assert padded.shape == (len(lengths), 5, 2)
    for row, own in zip(padded, sequences, strict=True):
        assert torch.equal(row[: len(own)], own)
        assert bool((row[len(own) :] == -1).all())
    back = Jagged.from_padded(padded, s.lengths)
    assert torch.equal(back.values, s.values)
    assert torch.equal(back.offsets, s.offsets)
    assert back.max_len == 5


def test_nested_and_back() -> None:
    s, sequences = make([2, 0, 3])
    nested = s.to_nested()
    assert all(torch.equal(a, b) for a, b in zip(nested.unbind(), sequences, strict=True))
    back = Jagged.from_nested(nested, max_len=5)
    assert torch.equal(back.values, s.values)
    assert torch.equal(back.offsets, s.offsets)


def test_too_long_sequences_are_refused() -> None:
    s, sequences = make([2, 4])
    with pytest.raises(ShapeError, match="length: a sequence has 4 rows, more than 3"):
        s.to_padded(3)
    with pytest.raises(ShapeError, match="sequences: the longest has 4 rows, max_len is 3"):
        Jagged.from_sequences(sequences, max_len=3)
