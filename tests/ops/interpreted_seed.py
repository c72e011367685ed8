"""The Triton kernels of seed_attention in the interpreter; run by test_triton_seed.py."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from kunlun.ops import seed_attention
from kunlun.ops.seed_attention.op import seed_attention_op
from kunlun.ops.seed_attention.reference import seed_attention_reference
from tests.ops.helpers import assert_matches, bits, gradients, normal, offsets_of

NAMES = ("seeds", "k", "v")
F32, F16 = torch.float32, torch.float16
SPLIT = 64
triton_seeds = partial(seed_attention, backend="triton")


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows make several splits, and the interpreter runs few programs."""
    kernels = import_module("kunlun.ops.seed_attention.kernels")
    monkeypatch.setattr(kernels, "SPLIT", SPLIT)
    monkeypatch.setattr(kernels, "SLICES", 6)


def make(
    lengths: tuple[int, ...],
    seeds: int = 5,
    heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = F32,
) -> tuple[list[Tensor], Tensor]:
    k, v = (normal(sum(lengths), heads, dim, dtype=dtype, seed=s) for s in (2, 3))
    return [normal(seeds, heads, dim, dtype=dtype, seed=1), k, v], offsets_of(lengths)


EDGES = (31, 32, 33, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT, 2)
CASES = [  # lengths, S, H, D, dtype
    ((5,), 16, 2, 16, F32),
    ((0, 4, 3), 16, 2, 16, F32),
    ((4, 0, 0, 3), 16, 2, 16, F32),
    ((4, 3, 0), 16, 2, 16, F32),
    ((0, 0), 16, 2, 16, F32),
    ((1, 1, 1), 16, 2, 16, F32),
    (EDGES, 1, 1, 24, F32),
    (EDGES, 20, 1, 40, F32),
    (EDGES, 40, 1, 16, F32),  # more seeds than a tile holds
    ((300, *(1,) * 5, 0, 2), 16, 1, 8, F32),
    ((0, 150, 33, 90), 70, 1, 100, F32),
    ((100, 7), 16, 3, 16, F16),
]


def _case_id(case: tuple) -> str:
    lengths, seeds, heads, dim, dtype = case
    return f"L{'.'.join(map(str, lengths))[:24]}-S{seeds}-H{heads}-D{dim}-{str(dtype)[6:]}"


@pytest.mark.parametrize("case", CASES, ids=_case_id)
def test_triton_seeds_match_reference(case: tuple) -> None:
    inputs, offsets = make(*case)
    run = partial(triton_seeds, offsets=offsets)
    assert_matches(run, partial(seed_attention_reference, offsets=offsets), inputs, NAMES)


@pytest.mark.parametrize("length", [40, 200])
def test_triton_seeds_take_a_scale_and_survive_large_scores(length: int) -> None:
    inputs, offsets = make((length, 3))
    got = triton_seeds(*inputs, offsets, scale=300.0)  # weights of one key, of nearly all
    want = seed_attention_reference(*inputs, offsets, scale=300.0)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3)


def test_triton_seeds_save_the_same_log_sums_as_portable() -> None:
    inputs, offsets = make((40, 0, 130))
    theirs, ours = (
        seed_attention_op(*inputs, offsets, 0.7, backend)[1] for backend in ("portable", "triton")
    )
    assert not ours[1].any()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_triton_seeds_of_nothing_are_zero_and_pass_no_gradient() -> None:
    inputs, offsets = make((0, 0))
    out, d_seeds, dk, dv = gradients(partial(triton_seeds, offsets=offsets), inputs)
    assert out.shape == (2, 5, 2, 16)
    assert not out.any()
    assert not d_seeds.any()
    assert dk.shape == dv.shape == (0, 2, 16)


def test_triton_seeds_of_no_samples() -> None:
    inputs, offsets = make(())
    out, d_seeds, dk, dv = gradients(partial(triton_seeds, offsets=offsets), inputs)
    assert out.shape == (0, 5, 2, 16)
    assert not d_seeds.any()
    assert dk.shape == dv.shape == (0, 2, 16)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_triton_seeds_take_int32_and_strided_inputs(dtype: torch.dtype) -> None:
    rows = offsets_of((5, 0, 70), dtype)
    by_head = [*normal(75, 2, 2, 16).transpose(1, 2).unbind(1)]
    by_row = [*normal(16, 2, 2, 75).permute(3, 1, 2, 0).unbind(1)]
    seeds = normal(2, 8, 16).transpose(0, 1)
    for given in ([seeds, *by_head], [seeds, *by_row]):
        dense = [x.contiguous() for x in given]
        a = gradients(partial(triton_seeds, offsets=rows), given)
        b = gradients(partial(triton_seeds, offsets=rows.long()), dense)
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the poison in NumPy
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("sample", [0, 1, 3])
def test_triton_seeds_sample_is_bit_equal_whatever_its_neighbours_hold(
    sample: int, poison: float
) -> None:
    inputs, offsets = make((33, 140, 0, 64))
    run = partial(triton_seeds, offsets=offsets)
    own = slice(int(offsets[sample]), int(offsets[sample + 1]))
    dirty = [inputs[0], *(torch.full_like(x, poison) for x in inputs[1:])]
    for x, y in zip(inputs[1:], dirty[1:], strict=True):
        y[own] = x[own]
    clean, other = gradients(run, inputs), gradients(run, dirty)
    assert torch.equal(bits(clean[0][sample]), bits(other[0][sample]))
    for a, b in zip(clean[2:], other[2:], strict=True):
        assert torch.equal(bits(a[own]), bits(b[own]))


@pytest.mark.parametrize(("length", "seeds"), [(1, 5), (33, 40), (150, 5)])
def test_triton_seeds_sample_is_bit_equal_whatever_its_neighbours_lengths(
    length: int, seeds: int
) -> None:
    inputs, offsets = make((length,), seeds, heads=1, dim=24)
    (_, k, v), _ = make((5, 70, length, 1), seeds, heads=1, dim=24)
    crowd = [inputs[0], torch.cat([inputs[1], k]), torch.cat([inputs[2], v])]
    a = gradients(partial(triton_seeds, offsets=offsets), inputs)
    many = offsets_of((length, 5, 70, length, 1))
    b = gradients(partial(triton_seeds, offsets=many), crowd)
    assert torch.equal(bits(a[0][0]), bits(b[0][0]))
    for x, y in zip(a[2:], b[2:], strict=True):
        assert torch.equal(bits(x), bits(y[:length]))


def test_triton_seeds_runs_are_bit_equal() -> None:
    inputs, offsets = make((50, 3, 0, 170))
    run = partial(triton_seeds, offsets=offsets)
    for a, b in zip(gradients(run, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(bits(a), bits(b))
