"""window_attention against its float64 reference, and the promises of its docstring."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kunlun.ops import window_attention
from kunlun.ops.window_attention.reference import window_attention_reference
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

NAMES = ("q", "k", "v")
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def make(
    lengths: tuple[int, ...],
    heads: int = 4,
    kv_heads: int = 4,
    dim: int = 16,
    dtype: torch.dtype = F32,
) -> tuple[list[Tensor], Tensor]:
    n = sum(lengths)
    q = normal(n, heads, dim, dtype=dtype, seed=1)
    k, v = (normal(n, kv_heads, dim, dtype=dtype, seed=s) for s in (2, 3))
    return [q, k, v], offsets_of(lengths)


CASES = [  # lengths, window, H, Hkv, D, dtype
    *[(lengths, 3, 2, 2, 16, F32) for lengths in LENGTHS.values()],
    (LENGTHS["buckets"], 0, 2, 2, 24, F32),
    (LENGTHS["buckets"], 10, 4, 2, 40, F32),
    (LENGTHS["buckets"], 32, 4, 1, 16, BF16),
    (LENGTHS["skewed"], 70, 2, 2, 8, F64),
    (LENGTHS["skewed"], 10**9, 2, 1, 8, F32),
    (LENGTHS["buckets"], 2**62, 2, 1, 8, F32),
    ((257, 256, 255), 20, 2, 2, 8, F32),
    ((700,), 150, 2, 1, 8, torch.float16),
    # Several tiles of queries with keys on both sides, and keys that no tile reads at once.
    *[((500, 0, 333), window, 2, 1, dim, F32) for window in (7, 70, 150) for dim in (16, 24)],
]


def _case_id(case: tuple) -> str:
    lengths, window, heads, kv_heads, dim, dtype = case
    shown = ".".join(map(str, lengths))[:24]
    return f"L{shown}-w{window}-H{heads}.{kv_heads}-D{dim}-{str(dtype)[6:]}"


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, _case_id))
def test_window_attention_matches_reference(case: tuple, causal: bool, backend: str) -> None:
    lengths, window, heads, kv_heads, dim, dtype = case
    inputs, offsets = make(lengths, heads, kv_heads, dim, dtype)
    kwargs = {"offsets": offsets, "window": window, "causal": causal}
    assert_matches(
        partial(window_attention, backend=backend, **kwargs),
        partial(window_attention_reference, **kwargs),
        inputs,
        NAMES,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_attention_takes_a_scale(backend: str) -> None:
    inputs, offsets = make((9, 4))
    kwargs = {"offsets": offsets, "window": 2, "scale": 3.0}
    assert_matches(
        partial(window_attention, backend=backend, **kwargs),
        partial(window_attention_reference, **kwargs),
        inputs,
        NAMES,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_attention_survives_large_scores(backend: str) -> None:
    inputs, offsets = make((40, 3))
    inputs[0] = inputs[0] * 1e3  # exp of these scores overflows, their differences underflow
    kwargs = {"offsets": offsets, "window": 5}
    got = window_attention(*inputs, backend=backend, **kwargs)
    want = window_attention_reference(*inputs, **kwargs)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_window_attention_takes_int32_and_strided_inputs(dtype: torch.dtype, backend: str) -> None:
    q, k, v = normal(12, 2, 3, 16).transpose(1, 2).unbind(1)
    rows = offsets_of((5, 0, 7), dtype)
    dense = [x.contiguous() for x in (q, k, v)]
    run = partial(window_attention, window=2, backend=backend)
    assert torch.equal(run(q, k, v, rows), run(*dense, rows.long()))


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
def test_window_attention_gradcheck(causal: bool) -> None:
    inputs, offsets = make((3, 0, 4), heads=2, kv_heads=1, dim=4, dtype=F64)
    run = partial(window_attention, offsets=offsets, window=1, causal=causal)
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 7.0], ids=str)
@pytest.mark.parametrize("sample", [1, 4, 6])
def test_window_attention_sample_is_bit_equal_whatever_its_neighbours_hold(
    sample: int, poison: float, backend: str
) -> None:
    lengths = (70, 66, 67, 5, 5, 5, 300)
    inputs, offsets = make(lengths)
    run = partial(window_attention, offsets=offsets, window=3, backend=backend)
    own = slice(int(offsets[sample]), int(offsets[sample + 1]))
    dirty = [torch.full_like(x, poison) for x in inputs]
    for x, y in zip(inputs, dirty, strict=True):
        y[own] = x[own]
    for a, b in zip(gradients(run, inputs), gradients(run, dirty), strict=True):
        assert torch.equal(bits(a[own]), bits(b[own]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 7, 16, 18, 50, 67, 130, 300])
def test_window_attention_sample_is_bit_equal_whatever_its_neighbours_lengths(
    length: int, backend: str
) -> None:
    alone, offsets = make((length,), heads=3, kv_heads=3, dim=24)
    others, _ = make((5, 40, length, 1), heads=3, kv_heads=3, dim=24)
    crowd = [torch.cat([x, y]) for x, y in zip(alone, others, strict=True)]
    run = partial(window_attention, window=10, backend=backend)
    by_itself = gradients(partial(run, offsets=offsets), alone)
    many = offsets_of((length, 5, 40, length, 1))
    for a, b in zip(by_itself, gradients(partial(run, offsets=many), crowd), strict=True):
        assert torch.equal(bits(a), bits(b[:length]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_attention_runs_are_bit_equal(backend: str) -> None:
    inputs, offsets = make((50, 3, 0, 300))
    run = partial(window_attention, offsets=offsets, window=10, backend=backend)
    for a, b in zip(gradients(run, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(bits(a), bits(b))


class _Largest(TorchDispatchMode):
    """Largest number of elements any operation returned."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.seen = max(self.seen, x.numel())
        return out


def test_portable_window_attention_memory_is_linear_in_length() -> None:
    heads, dim, window = 1, 4, 16
    for length in (2048, 16384):
        inputs, offsets = make((length,), heads, heads, dim)
        leaves = [x.requires_grad_() for x in inputs]
        with _Largest() as largest:
            out = window_attention(*leaves, offsets, window=window, backend="portable")
            torch.autograd.grad(out.sum(), leaves)
        # Rows, or one tile; the scores of 16384 rows would be 268 million.
        assert largest.seen <= max((length + 1) * heads * dim, 128 * 1024)
