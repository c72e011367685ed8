"""seed_attention against its float64 reference, and the promises of its docstring."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kunlun.ops import seed_attention
from kunlun.ops.seed_attention.reference import seed_attention_reference
from tests.ops.helpers import (
    BACKENDS,
    LENGTHS,
    assert_matches,
    bits,
    gradients,
    normal,
    offsets_of,
    on_each_backend,
)

NAMES = ("seeds", "k", "v")
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def make(
    lengths: tuple[int, ...],
    seeds: int = 16,
    heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = F32,
) -> tuple[list[Tensor], Tensor]:
    k, v = (normal(sum(lengths), heads, dim, dtype=dtype, seed=s) for s in (2, 3))
    return [normal(seeds, heads, dim, dtype=dtype, seed=1), k, v], offsets_of(lengths)


CASES = [  # lengths, S, H, D, dtype
    *[(lengths, 16, 2, 16, F32) for lengths in LENGTHS.values()],
    (LENGTHS["buckets"], 1, 4, 24, F32),
    (LENGTHS["buckets"], 33, 1, 40, F32),
    (LENGTHS["buckets"], 32, 4, 16, BF16),
    (LENGTHS["skewed"], 7, 2, 8, F64),
    ((3000, 2), 64, 2, 8, F32),
    ((900, 0, 1), 200, 2, 8, torch.float16),
]


def _case_id(case: tuple) -> str:
    lengths, seeds, heads, dim, dtype = case
    return f"L{'.'.join(map(str, lengths))[:24]}-S{seeds}-H{heads}-D{dim}-{str(dtype)[6:]}"


@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, _case_id))
def test_seed_attention_matches_reference(case: tuple, backend: str) -> None:
    inputs, offsets = make(*case)
    kwargs = {"offsets": offsets}
    assert_matches(
        partial(seed_attention, backend=backend, **kwargs),
        partial(seed_attention_reference, **kwargs),
        inputs,
        NAMES,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_attention_takes_a_scale(backend: str) -> None:
    inputs, offsets = make((9, 4))
    kwargs = {"offsets": offsets, "scale": 3.0}
    assert_matches(
        partial(seed_attention, backend=backend, **kwargs),
        partial(seed_attention_reference, **kwargs),
        inputs,
        NAMES,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [40, 3000])
def test_seed_attention_survives_large_scores(length: int, backend: str) -> None:
    inputs, offsets = make((length, 3), seeds=64)
    inputs[0] = inputs[0] * 1e3  # exp of these scores overflows, their differences underflow
    got = seed_attention(*inputs, offsets, backend=backend)
    want = seed_attention_reference(*inputs, offsets)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_attention_of_nothing_is_zero_and_passes_no_gradient(backend: str) -> None:
    inputs, offsets = make((0, 0))
    run = partial(seed_attention, offsets=offsets, backend=backend)
    out, d_seeds, dk, dv = gradients(run, inputs)
    assert out.shape == (2, 16, 2, 16)
    assert not out.any()
    assert not d_seeds.any()
    assert dk.shape == dv.shape == (0, 2, 16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_seed_attention_takes_int32_and_strided_inputs(dtype: torch.dtype, backend: str) -> None:
    k, v = normal(12, 2, 2, 16).transpose(1, 2).unbind(1)
    seeds = normal(2, 8, 16).transpose(0, 1)
    rows = offsets_of((5, 0, 7), dtype)
    dense = [x.contiguous() for x in (seeds, k, v)]
    got = seed_attention(seeds, k, v, rows, backend=backend)
    assert torch.equal(got, seed_attention(*dense, rows.long(), backend=backend))


def test_seed_attention_gradcheck() -> None:
    inputs, offsets = make((3, 0, 2), seeds=2, dim=4, dtype=F64)
    run = partial(seed_attention, offsets=offsets)
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 7.0], ids=str)
def test_seed_attention_sample_is_bit_equal_whatever_its_neighbours_hold(
    poison: float, backend: str
) -> None:
    (seeds, k, v), offsets = make((17, 18, 18, 18, 5))
    own = slice(int(offsets[2]), int(offsets[3]))
    dirty = [torch.full_like(x, poison) for x in (k, v)]
    for x, y in zip((k, v), dirty, strict=True):
        y[own] = x[own]
    run = partial(seed_attention, offsets=offsets, backend=backend)
    a, b = gradients(run, [seeds, k, v]), gradients(run, [seeds, *dirty])
    assert torch.equal(bits(a[0][2]), bits(b[0][2]))
    for x, y in zip(a[2:], b[2:], strict=True):  # every sample adds to the seeds' gradient
        assert torch.equal(bits(x[own]), bits(y[own]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 7, 16, 18, 50, 130, 300])
def test_seed_attention_sample_is_bit_equal_whatever_its_neighbours_lengths(
    length: int, backend: str
) -> None:
    inputs, offsets = make((length,), seeds=7, heads=3, dim=24)
    (_, k, v), _ = make((5, 40, length, 1), seeds=7, heads=3, dim=24)
    crowd = [inputs[0], torch.cat([inputs[1], k]), torch.cat([inputs[2], v])]
    run = partial(seed_attention, backend=backend)
    a = gradients(partial(run, offsets=offsets), inputs)
    many = offsets_of((length, 5, 40, length, 1))
    b = gradients(partial(run, offsets=many), crowd)
    assert torch.equal(bits(a[0][0]), bits(b[0][0]))
    for x, y in zip(a[2:], b[2:], strict=True):
        assert torch.equal(bits(x), bits(y[:length]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_attention_runs_are_bit_equal(backend: str) -> None:
    inputs, offsets = make((50, 3, 0, 300))
    run = partial(seed_attention, offsets=offsets, backend=backend)
    for a, b in zip(gradients(run, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(bits(a), bits(b))
