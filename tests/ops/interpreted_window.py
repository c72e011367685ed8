"""The Triton kernels of window_attention in the interpreter; run by test_triton_window.py."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kunlun.ops import window_attention
from kunlun.ops.window_attention.op import window_attention_op
from kunlun.ops.window_attention.reference import window_attention_reference
from tests.ops.helpers import assert_matches, bits, gradients, normal, offsets_of

NAMES = ("q", "k", "v")
F32, F16 = torch.float32, torch.float16
triton_window = partial(window_attention, backend="triton")


def make(
    lengths: tuple[int, ...],
    heads: int = 2,
    kv_heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = F32,
) -> tuple[list[Tensor], Tensor]:
    n = sum(lengths)
    q = normal(n, heads, dim, dtype=dtype, seed=1)
    k, v = (normal(n, kv_heads, dim, dtype=dtype, seed=s) for s in (2, 3))
    return [q, k, v], offsets_of(lengths)


EDGES = (31, 32, 33, 63, 64, 65, 2)  # a tile of rows or keys, one less, one more
CASES = [  # lengths, window, causal, H, Hkv, D, dtype
    ((5,), 3, False, 2, 2, 16, F32),
    ((0, 4, 3), 3, False, 2, 2, 16, F32),
    ((4, 0, 0, 3), 3, True, 2, 2, 16, F32),
    ((4, 3, 0), 3, False, 2, 2, 16, F32),
    ((0, 0), 3, False, 2, 2, 16, F32),
    ((1, 1, 1), 3, False, 2, 2, 16, F32),
    (EDGES, 0, False, 1, 1, 24, F32),
    (EDGES, 5, False, 2, 1, 24, F32),
    (EDGES, 5, True, 1, 1, 40, F32),
    (EDGES, 32, True, 2, 1, 16, F32),
    ((150, *(1,) * 5, 0, 2), 40, False, 1, 1, 8, F32),  # tiles inside the band, without a mask
    ((150, 7), 10**12, False, 1, 1, 16, F32),
    ((70, 33), 70, True, 4, 2, 100, F32),
    ((70, 33), 9, False, 1, 1, 16, F16),
]


def _case_id(case: tuple) -> str:
    lengths, window, causal, heads, kv_heads, dim, dtype = case
    shown = ".".join(map(str, lengths))[:20]
    return f"L{shown}-w{window}{'c' * causal}-H{heads}.{kv_heads}-D{dim}-{str(dtype)[6:]}"


@pytest.mark.parametrize("case", CASES, ids=_case_id)
def test_triton_window_matches_reference(case: tuple) -> None:
    lengths, window, causal, heads, kv_heads, dim, dtype = case
    inputs, offsets = make(lengths, heads, kv_heads, dim, dtype)
    kwargs = {"offsets": offsets, "window": window, "causal": causal}
    run, reference = partial(triton_window, **kwargs), partial(window_attention_reference, **kwargs)
    assert_matches(run, reference, inputs, NAMES)


def test_triton_window_of_no_samples() -> None:
    inputs, offsets = make(())
    for x in gradients(partial(triton_window, offsets=offsets, window=3), inputs):
        assert x.shape == (0, 2, 16)


def test_triton_window_takes_a_scale_and_survives_large_scores() -> None:
    inputs, offsets = make((40, 3))
    kwargs = {"offsets": offsets, "window": 5, "scale": 300.0}  # weights of one key, of nearly all
    got = triton_window(*inputs, **kwargs)
    want = window_attention_reference(*inputs, **kwargs)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
def test_triton_window_saves_the_same_log_sums_as_portable(causal: bool) -> None:
    inputs, offsets = make((40, 0, 33), heads=4, kv_heads=2)
    theirs, ours = (
        window_attention_op(*inputs, offsets, 6, causal, 0.7, backend)[1]
        for backend in ("portable", "triton")
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_triton_window_takes_int32_and_strided_inputs(dtype: torch.dtype) -> None:
    rows = offsets_of((5, 0, 35), dtype)
    by_head = normal(40, 2, 3, 16).transpose(1, 2).unbind(1)  # channels side by side
    by_row = normal(16, 3, 2, 40).permute(3, 1, 2, 0).unbind(1)  # channels far apart
    for given in (by_head, by_row):
        dense = [x.contiguous() for x in given]
        a = gradients(partial(triton_window, offsets=rows, window=2), given)
        b = gradients(partial(triton_window, offsets=rows.long(), window=2), dense)
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the poison in NumPy
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("sample", [0, 1, 3])
def test_triton_window_sample_is_bit_equal_whatever_its_neighbours_hold(
    sample: int, poison: float
) -> None:
    inputs, offsets = make((33, 40, 0, 64))
    run = partial(triton_window, offsets=offsets, window=3)
    own = slice(int(offsets[sample]), int(offsets[sample + 1]))
    dirty = [torch.full_like(x, poison) for x in inputs]
    for x, y in zip(inputs, dirty, strict=True):
        y[own] = x[own]
    for a, b in zip(gradients(run, inputs), gradients(run, dirty), strict=True):
        assert torch.equal(bits(a[own]), bits(b[own]))


@pytest.mark.parametrize("length", [1, 33, 100])
def test_triton_window_sample_is_bit_equal_whatever_its_neighbours_lengths(length: int) -> None:
    alone, offsets = make((length,), 1, 1, dim=24)
    others, _ = make((5, 40, length, 1), 1, 1, dim=24)
    crowd = [torch.cat([x, y]) for x, y in zip(alone, others, strict=True)]
    run = partial(triton_window, window=10)
    by_itself = gradients(partial(run, offsets=offsets), alone)
    many = offsets_of((length, 5, 40, length, 1))
    for a, b in zip(by_itself, gradients(partial(run, offsets=many), crowd), strict=True):
        assert torch.equal(bits(a), bits(b[:length]))


def test_triton_window_runs_are_bit_equal() -> None:
    inputs, offsets = make((50, 3, 0, 70))
    run = partial(triton_window, offsets=offsets, window=10)
    for a, b in zip(gradients(run, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(bits(a), bits(b))
