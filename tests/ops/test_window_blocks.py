"""Long samples of portable window attention: blocks, here of samples that a test can afford."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from kunlun.ops import window_attention
from kunlun.ops.window_attention import blocks, portable
from kunlun.ops.window_attention.reference import window_attention_reference
from tests.ops.helpers import assert_matches, bits, gradients, normal, offsets_of

LENGTHS = (70, 161, 5, 0, 300)
portable_attention = partial(window_attention, backend="portable")


@pytest.fixture(params=[1, 3000, 30000], ids=["one", "some", "heads"], autouse=True)
def scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of one block, of a few of one head, of several heads; the larger, the fewer samples
    are cut."""
    monkeypatch.setattr(blocks, "_SCORES", request.param)
    portable._plan.cache_clear()
    yield
    portable._plan.cache_clear()


def make(lengths: tuple[int, ...], heads: int, kv_heads: int, dtype: torch.dtype = torch.float32):
    shapes = ((heads, 1), (kv_heads, 2), (kv_heads, 3))
    return [normal(sum(lengths), h, 8, dtype=dtype, seed=seed) for h, seed in shapes]


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [0, 7, 16, 33, 40])  # blocks of 16, 16, 16, 17 and 20 rows
def test_blocks_match_reference(window: int, heads: int, kv_heads: int, causal: bool) -> None:
    kwargs = {"offsets": offsets_of(LENGTHS), "window": window, "causal": causal}
    assert_matches(
        partial(portable_attention, **kwargs),
        partial(window_attention_reference, **kwargs),
        make(LENGTHS, heads, kv_heads),
        ("q", "k", "v"),
    )


def test_blocks_compute_half_precision_in_float32() -> None:
    """The scale is not rounded into bfloat16 queries: the result is that of float32, rounded."""
    inputs, rows = make((300,), 4, 2, torch.bfloat16), offsets_of((300,))
    run = partial(portable_attention, offsets=rows, window=7)
    want = run(*(x.float() for x in inputs)).bfloat16()
    assert torch.equal(run(*inputs), want)


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
def test_blocks_gradcheck(causal: bool) -> None:
    inputs = [x[..., :2].contiguous() for x in make((73,), 2, 1, torch.float64)]
    run = partial(portable_attention, offsets=offsets_of((73,)), window=7, causal=causal)
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("length", [73, 160, 161, 300])
def test_blocks_are_bit_equal_whatever_the_neighbours(length: int) -> None:
    alone = make((length,), 3, 3)
    crowd = [torch.cat([torch.full_like(x, torch.nan), x, x[:80]]) for x in alone]
    lengths = (length, length, min(length, 80))
    run = partial(portable_attention, window=7)
    by_itself = gradients(partial(run, offsets=offsets_of((length,))), alone)
    # The outer gradient goes by position, so the sample is first in one of the crowds.
    last = [torch.cat([x, torch.full_like(x, torch.nan), x[:80]]) for x in alone]
    among = gradients(partial(run, offsets=offsets_of(lengths)), last)
    for a, b in zip(by_itself, among, strict=True):
        assert torch.equal(bits(a), bits(b[:length]))
    second = run(*crowd, offsets_of(lengths))[length : 2 * length]
    assert torch.equal(bits(by_itself[0]), bits(second))
    for a, b in zip(among, gradients(partial(run, offsets=offsets_of(lengths)), last), strict=True):
        assert torch.equal(bits(a), bits(b))
