"""gdpa against its float64 reference, and the promises of its docstring."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kunlun.ops import gdpa
from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.gdpa.reference import gdpa_reference
from tests.ops.helpers import (
    BACKENDS,
    LENGTHS,
    assert_matches,
    bits,
    gradients,
    needs_native,
    normal,
    offsets_of,
    on_each_backend,
)

NAMES = ("q", "k", "v")
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def make(
    rows: tuple[int, ...],
    keys: tuple[int, ...],
    heads: int = 4,
    kv_heads: int = 4,
    dim: int = 16,
    dtype: torch.dtype = F32,
) -> tuple[list[Tensor], Tensor, Tensor]:
    q = normal(sum(rows), heads, dim, dtype=dtype, seed=1)
    k, v = (normal(sum(keys), kv_heads, dim, dtype=dtype, seed=s) for s in (2, 3))
    return [q, k, v], offsets_of(rows), offsets_of(keys)


CASES = [  # rows, keys a sample (int: all alike), H, Hkv, D, dtype
    *[(rows, 8, 4, 4, 16, F32) for rows in LENGTHS.values()],
    (LENGTHS["buckets"], 1, 2, 2, 24, F32),
    (LENGTHS["buckets"], 33, 4, 2, 40, F32),
    (LENGTHS["buckets"], 64, 4, 1, 16, BF16),
    (LENGTHS["skewed"], 17, 6, 3, 8, F64),
    ((0, 1, 7, 0, 33, 3), (3, 2, 0, 0, 5, 40), 4, 2, 16, F32),
    ((5, 5, 5), (0, 0, 0), 2, 2, 16, F32),
    ((70, 70, 3), (70, 70, 3), 2, 2, 16, F32),
    ((3000,), (40,), 2, 1, 8, F32),
    ((250, 256, 250, 600), 130, 8, 8, 8, F32),  # padded and not, each in several parts
    ((1, 900), (1, 900), 1, 1, 8, torch.float16),
]


def _case_id(case: tuple[object, ...]) -> str:
    rows, keys, heads, kv_heads, dim, dtype = case
    return f"L{'.'.join(map(str, rows))[:24]}-K{keys}-H{heads}.{kv_heads}-D{dim}-{str(dtype)[6:]}"


@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, _case_id))
def test_gdpa_matches_reference(case: tuple, backend: str) -> None:
    rows, keys, heads, kv_heads, dim, dtype = case
    keys = (keys,) * len(rows) if isinstance(keys, int) else keys
    inputs, *offsets = make(rows, keys, heads, kv_heads, dim, dtype)
    kwargs = {
        "q_offsets": offsets[0],
        "kv_offsets": offsets[1],
        "scale": 0.3,
        "out_scale": 0.5,
    }
    run = partial(gdpa, backend=backend, **kwargs)
    assert_matches(run, partial(gdpa_reference, **kwargs), inputs, NAMES)


@pytest.mark.parametrize(
    "activation", [*ACTIVATIONS, ["relu", "gelu", "silu", "raw"]], ids=lambda a: str(a)
)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("portable", F64), pytest.param("native", F32, marks=needs_native)]
)
def test_gdpa_activations_match_reference(
    activation: str | list[str], kv_heads: int, backend: str, dtype: torch.dtype
) -> None:
    inputs, rows, keys = make((3, 0, 20, 1), (5, 5, 5, 5), kv_heads=kv_heads, dtype=dtype)
    kwargs = {"q_offsets": rows, "kv_offsets": keys, "activation": activation, "scale": 2.0}
    run = partial(gdpa, backend=backend, **kwargs)
    assert_matches(run, partial(gdpa_reference, **kwargs), inputs, NAMES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gdpa_relu_slope_at_zero_is_torchs(backend: str) -> None:
    zeros, k = torch.zeros(2, 1, 4), normal(3, 1, 4)
    offsets = {"q_offsets": offsets_of((2,)), "kv_offsets": offsets_of((3,))}
    run = partial(gdpa, **offsets, activation="relu", backend=backend)
    assert not gradients(run, [zeros, k, k])[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_gdpa_takes_int32_and_strided_inputs(dtype: torch.dtype, backend: str) -> None:
    packed = normal(12, 2, 3, 16).transpose(1, 2)  # [L, 3, H, D] with foreign strides
    q, k, v = packed.unbind(1)
    rows = offsets_of((5, 0, 7), dtype)
    got = gdpa(q, k, v, rows, rows, backend=backend)
    dense = [x.contiguous() for x in (q, k, v)]
    assert torch.equal(got, gdpa(*dense, rows.long(), rows.long(), backend=backend))


def test_gdpa_gradcheck() -> None:
    inputs, rows, keys = make((3, 0, 2), (2, 3, 1), heads=2, kv_heads=1, dim=4, dtype=F64)
    run = partial(gdpa, q_offsets=rows, kv_offsets=keys, activation="silu", scale=0.7)
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 7.0], ids=str)
def test_gdpa_sample_is_bit_equal_whatever_its_neighbours_hold(poison: float, backend: str) -> None:
    lengths = (17, 18, 18, 18, 5, 5)
    inputs, rows, keys = make(lengths, (9,) * 6)
    run = partial(gdpa, q_offsets=rows, kv_offsets=keys, backend=backend)
    clean = gradients(run, inputs)
    sample = 2
    dirty = []
    for x, offsets in zip(inputs, (rows, keys, keys), strict=True):
        y = torch.full_like(x, poison)
        own = slice(int(offsets[sample]), int(offsets[sample + 1]))
        y[own] = x[own]
        dirty.append(y)
    for a, b, offsets in zip(clean, gradients(run, dirty), (rows, rows, keys, keys), strict=True):
        own = slice(int(offsets[sample]), int(offsets[sample + 1]))
        assert torch.equal(bits(a[own]), bits(b[own]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 7, 16, 18, 50, 130, 300])
def test_gdpa_sample_is_bit_equal_whatever_its_neighbours_lengths(
    length: int, backend: str
) -> None:
    alone, rows, keys = make((length,), (9,), heads=3, kv_heads=3, dim=24)
    others, _, _ = make((5, 40, length, 1), (9, 9, 9, 8), heads=3, kv_heads=3, dim=24)
    crowd = [torch.cat([x, y]) for x, y in zip(alone, others, strict=True)]
    many_rows, many_keys = offsets_of((length, 5, 40, length, 1)), offsets_of((9, 9, 9, 9, 8))
    run = partial(gdpa, backend=backend)
    by_itself = gradients(partial(run, q_offsets=rows, kv_offsets=keys), alone)
    run = partial(run, q_offsets=many_rows, kv_offsets=many_keys)
    for a, b in zip(by_itself, gradients(run, crowd), strict=True):
        assert torch.equal(bits(a), bits(b[: len(a)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gdpa_runs_are_bit_equal(backend: str) -> None:
    inputs, rows, keys = make((50, 3, 0, 300), (16,) * 4)
    run = partial(gdpa, q_offsets=rows, kv_offsets=keys, backend=backend)
    for a, b in zip(gradients(run, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(bits(a), bits(b))
