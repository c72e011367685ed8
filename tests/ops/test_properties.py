"""Operators on batches that hypothesis invents, and the strategy itself."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kunlun.errors import BackendError
from kunlun.ops import Jagged, gdpa, seed_attention, window_attention
from kunlun.ops.gdpa.reference import gdpa_reference
from kunlun.ops.seed_attention.reference import seed_attention_reference
from kunlun.ops.tiles import bucket, pack
from kunlun.ops.window_attention.reference import window_attention_reference
from kunlun.testing import jagged
from tests.ops.helpers import BACKENDS, assert_matches, normal

# The fixture poisons the same way for every example, so sharing it between them is right.
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DIMS = st.sampled_from([4, 24, 40])
MAX_LEN = st.sampled_from([3, 20, 90])


def batches(dims: st.SearchStrategy[int], heads: int) -> st.SearchStrategy[Jagged]:
    return st.tuples(dims, MAX_LEN).flatmap(
        lambda p: jagged(width=(heads, p[0]), max_len=p[1], max_sequences=4)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@few
@given(batches(DIMS, 2), st.sampled_from([1, 5, 17]), st.booleans())
def test_gdpa_property(backend: str, batch: Jagged, keys: int, shared: bool) -> None:
    n, dim = batch.n, batch.values.shape[2]
    kv = normal(n * keys, 1 if shared else 2, dim, seed=4)
    kwargs = {
        "q_offsets": batch.offsets,
        "kv_offsets": torch.arange(n + 1, dtype=batch.offsets.dtype) * keys,
        "scale": 0.2,
    }
    inputs = [batch.values, kv, normal(*kv.shape, seed=5).flip(0)]
    assert_matches(
        partial(gdpa, backend=backend, **kwargs),
        partial(gdpa_reference, **kwargs),
        inputs,
        ("q", "k", "v"),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@few
@given(batches(DIMS, 2), st.sampled_from([0, 1, 5, 40, 1000]), st.booleans())
def test_window_attention_property(backend: str, batch: Jagged, window: int, causal: bool) -> None:
    x = batch.values
    inputs = [x, normal(*x.shape, seed=4).mT.contiguous().mT, normal(*x.shape, seed=5)]
    kwargs = {"offsets": batch.offsets, "window": window, "causal": causal}
    assert_matches(
        partial(window_attention, backend=backend, **kwargs),
        partial(window_attention_reference, **kwargs),
        inputs,
        ("q", "k", "v"),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@few
@given(batches(DIMS, 2), st.sampled_from([1, 7, 16]))
def test_seed_attention_property(backend: str, batch: Jagged, seeds: int) -> None:
    x = batch.values
    inputs = [normal(seeds, *x.shape[1:], seed=4), x, normal(*x.shape, seed=5)]
    kwargs = {"offsets": batch.offsets}
    assert_matches(
        partial(seed_attention, backend=backend, **kwargs),
        partial(seed_attention_reference, **kwargs),
        inputs,
        ("seeds", "k", "v"),
    )


def test_bucket_pads_by_less_than_an_eighth() -> None:
    lengths = torch.arange(0, 2000)
    padded = bucket(lengths)
    assert bool((padded >= lengths).all())
    assert bool(((padded - lengths) * 8 < lengths.clamp(min=1)).all())
    assert torch.equal(bucket(padded), padded)
    assert torch.equal(padded[:17], lengths[:17])


@few
@given(jagged(width=(2, 3), max_len=5, dtype=torch.float64))
def test_jagged_strategy_keeps_its_promises(batch: Jagged) -> None:
    assert batch.values.shape == (int(batch.lengths.sum()), 2, 3)
    assert batch.values.dtype == torch.float64
    assert batch.offsets.dtype in (torch.int32, torch.int64)
    assert int(batch.lengths.min()) >= 0
    assert int(batch.lengths.max()) <= batch.max_len == 5


def test_jagged_strategy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(BackendError, match=r"pip install 'kunlun-rec\[dev\]'"):
        jagged()


@pytest.mark.parametrize("neighbour", [190, 192])
def test_tile_of_one_sample_is_the_same_whatever_its_neighbour(neighbour: int) -> None:
    offsets, both = torch.tensor([0, 192, 192 + neighbour]), torch.arange(2)
    tiles = pack(offsets, 2, [(both, 192, 1)], torch.device("cpu")).tiles
    assert tiles[0].index is None
    assert (tiles[1].index is None) == (neighbour == 192)
