"""Triton kernels given offsets that no packed rows have; run by test_triton_bounds.py.

On a GPU nothing reads the offsets on the host, so wrong ones reach the kernels. Results are then
undefined, but nothing is stored outside the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kunlun.ops import gdpa, seed_attention, window_attention
from kunlun.ops.gdpa import kernels as gdpa_kernels
from kunlun.ops.seed_attention import kernels as seed_kernels
from kunlun.ops.triton.tiles import work_list
from tests.ops.helpers import gradients, normal

GUARD = 1 << 14  # elements on both sides; more than the kernels below could write too much
OFFSETS = {
    "too long": [0, 1000],
    "one of several": [0, 3, 800, 810],
    "decreasing": [0, 900, 2, 10],
    "negative": [-300, 5, 10],
    "enormous": [0, 2**40, 2**41 + 5],
}


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts guards around what torch.empty returns, and looks at them afterwards."""
    made: list[tuple[Tensor, Tensor]] = []

    def empty(*size: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        room = torch.full((shape.numel() + 2 * GUARD,), 77, dtype=dtype, device=device)
        made.append((room[:GUARD], room[-GUARD:]))
        return room[GUARD:-GUARD].view(shape)

    monkeypatch.setattr(torch, "empty", empty)
    yield
    assert made
    for guards in made:
        for guard in guards:
            assert bool((guard == 77).all())


@pytest.mark.parametrize("at_least_one", [False, True])
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
def test_work_lists_end_at_their_bound(
    offsets: list[int], at_least_one: bool, guarded: None
) -> None:
    made = work_list(torch.tensor(offsets), rows=10, tile=4, at_least_one=at_least_one)
    count = int(made.items[0, 0])
    assert 0 <= count <= made.bound
    samples = made.items[0, 1 : 1 + 2 * count : 2]
    assert bool(((samples >= 0) & (samples < len(offsets) - 1)).all())


def _gdpa(offsets: Tensor) -> Callable[..., Tensor]:
    keys = torch.arange(len(offsets)) * 2
    return lambda q, k, v: gdpa(q, k, v, offsets, keys, backend="triton")


def _gdpa_keys(offsets: Tensor) -> Callable[..., Tensor]:
    return lambda q, k, v: gdpa(q, k, v, offsets, offsets, backend="triton")


def _window(offsets: Tensor) -> Callable[..., Tensor]:
    return lambda q, k, v: window_attention(q, k, v, offsets, window=3, backend="triton")


def _seeds(offsets: Tensor) -> Callable[..., Tensor]:
    return lambda seeds, k, v: seed_attention(seeds[:2], k, v, offsets, backend="triton")


@pytest.mark.parametrize("run", [_gdpa, _gdpa_keys, _window, _seeds])
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kernels_store_nothing_outside_their_tensors(
    run: Callable[[Tensor], Callable[..., Tensor]],
    offsets: list[int],
    guarded: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(gdpa_kernels.TABLES, (4, 64), gdpa_kernels.TABLES[2, 64])
    monkeypatch.setattr(gdpa_kernels, "SLICE", 64)
    monkeypatch.setattr(seed_kernels, "SPLIT", 64)
    monkeypatch.setattr(seed_kernels, "SLICES", 6)
    inputs = [normal(90, 1, 16, seed=seed) for seed in (1, 2, 3)]
    gradients(run(torch.tensor(offsets)), inputs)
