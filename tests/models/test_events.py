"""Event histories, rearranged."""

from __future__ import annotations

import torch

from kunlun.features.batch import EventSequence
from kunlun.features.embedding import _age
from kunlun.models.events import merge_by_time
from kunlun.models.pooled import sum_of_events
from kunlun.ops.jagged import Jagged


def test_events_of_all_types_are_merged_oldest_first() -> None:
    """Three sequences, the second without any event; at equal times the earlier type is first."""
    a = Jagged(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 2, 3]), 5)
    b = Jagged(torch.tensor([[7.0], [8.0], [9.0]]), torch.tensor([0, 2, 2, 3]), 4)
    ages = torch.tensor([30.0, 10.0, 4.0]), torch.tensor([20.0, 10.0, 6.0])
    kinds = torch.tensor([[0.0], [0.5]])
    merged, age = merge_by_time({"a": (a, ages[0]), "b": (b, ages[1])}, kinds)
    assert merged.values.flatten().tolist() == [1, 7.5, 2, 8.5, 9.5, 3]
    assert age.tolist() == [30, 20, 10, 10, 6, 4]
    assert merged.offsets.tolist() == [0, 4, 4, 6]
    assert merged.max_len == 9


def test_the_sum_of_no_events_is_zero() -> None:
    s = Jagged(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0, 2, 2]), 4)
    assert sum_of_events(s, s.values).tolist() == [[2, 4], [0, 0]]


def test_events_of_one_second_keep_their_order_at_any_age() -> None:
    """Float32 seconds would be equal above half a year."""
    a = Jagged(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 2]), 2)
    b = Jagged(torch.tensor([[2.0]]), torch.tensor([0, 1]), 1)
    days = 400 * 86_400
    ages = [torch.tensor(x).double() + days for x in ([11, 9], [10])]
    events = {"b": (b, ages[1]), "a": (a, ages[0])}
    merged, age = merge_by_time(events, torch.zeros(2, 1))
    assert merged.values.flatten().tolist() == [1, 2, 3]
    assert age.diff().tolist() == [-1, -1]


def test_ages_of_the_embedding_are_exact() -> None:
    offsets, times = torch.tensor([0, 2]), torch.tensor([9_000, 10_000])
    empty = torch.zeros(2, 0)
    events = EventSequence(ids={}, numeric=empty, timestamps=times, offsets=offsets, max_len=2)
    request = torch.tensor([400 * 86_400_000])
    assert _age(events, Jagged(empty, offsets, 2), request).diff().tolist() == [-1]
