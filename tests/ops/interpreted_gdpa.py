"""gdpa's Triton kernels against the float64 reference; run by test_triton_gdpa.py.

The interpreter has no bfloat16 products, so that float32 tests the kernels, with the tile sizes of
float32 and with those of 16-bit types, which have more kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kunlun.errors import BackendError
from kunlun.ops import Choice, choose, gdpa
from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.gdpa import kernels
from kunlun.ops.gdpa.reference import gdpa_reference
from kunlun.ops.triton import MAX_WIDTH, tiles
from tests.ops.helpers import LENGTHS, assert_matches, bits, gradients, normal, offsets_of

# NumPy speaks up where a GPU's exp overflows in silence, and wherever it meets our NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NAMES = ("q", "k", "v")
F16, F32 = torch.float16, torch.float32


@pytest.fixture(params=[4, 2], ids=["tiles32", "tiles16"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs float32 with the tile sizes of items of so many bytes."""
    for width in (64, 128):
        monkeypatch.setitem(kernels.TABLES, (4, width), kernels.TABLES[request.param, width])
    return int(request.param)


def make(
    rows: tuple[int, ...],
    keys: tuple[int, ...],
    heads: int = 2,
    kv_heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = F32,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    q = normal(sum(rows), heads, dim, dtype=dtype, seed=1)
    k, v = (normal(sum(keys), kv_heads, dim, dtype=dtype, seed=s) for s in (2, 3))
    return [q, k, v], {"q_offsets": offsets_of(rows), "kv_offsets": offsets_of(keys)}


CASES = [  # rows, keys, H, Hkv, D
    *[(rows, (8,) * len(rows), 2, 2, 16) for rows in list(LENGTHS.values())[:6]],
    ((*LENGTHS["skewed"][:4], 0, 2), (1,) * 6, 1, 1, 24),
    ((0, 1, 70, 0, 33, 3), (3, 2, 0, 0, 5, 40), 4, 2, 40),
    ((5, 5), (0, 0), 1, 1, 16),
    ((0, 3, 40, 70), (64, 65, 129, 300), 2, 1, 16),
    ((3, 0, 9), (256, 300, 257), 1, 1, 32),
    ((130, 40), (100, 257), 2, 2, 128),
]


def case_id(case: tuple) -> str:
    rows, keys, heads, kv_heads, dim = case
    lengths = "-K".join(".".join(map(str, x)) for x in (rows, keys))
    return f"L{lengths}-H{heads}.{kv_heads}-D{dim}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_matches_reference(case: tuple, table: int) -> None:
    rows, keys, *sizes = case
    inputs, offsets = make(rows, keys, *sizes)
    kwargs = {**offsets, "scale": 0.3, "out_scale": 0.5}
    run = partial(gdpa, backend="triton", **kwargs)
    assert_matches(run, partial(gdpa_reference, **kwargs), inputs, NAMES)


def test_float16_matches_reference() -> None:
    inputs, offsets = make((3, 0, 70), (9, 3, 130), dtype=F16)
    run = partial(gdpa, backend="triton", scale=0.3, **offsets)
    assert_matches(run, partial(gdpa_reference, scale=0.3, **offsets), inputs, NAMES)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, ["relu", "gelu", "silu", "raw"]], ids=str)
def test_activations_match_reference(
    activation: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.TABLES, (4, 64), kernels.TABLES[2, 64])
    inputs, offsets = make((3, 0, 20, 1), (5, 5, 5, 130), heads=4)
    kwargs = {**offsets, "activation": activation, "scale": 2.0}
    run = partial(gdpa, backend="triton", **kwargs)
    assert_matches(run, partial(gdpa_reference, **kwargs), inputs, NAMES)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(activation: str) -> None:
    # One key of one channel: the result is the activation, the gradient of q its derivative.
    x = torch.cat([torch.linspace(-15, 15, 301), torch.tensor([0.0, -3.0, 3.0, 1e4, -1e4, 60.0])])
    one = torch.ones(1, 1, 1)
    offsets = {"q_offsets": offsets_of((len(x),)), "kv_offsets": offsets_of((1,))}
    q = x[:, None, None].clone().requires_grad_()
    got = gdpa(q, one, one, **offsets, activation=activation, backend="triton")
    slope = torch.autograd.grad(got.sum(), q)[0].flatten()
    exact = x.double().requires_grad_()
    want = ACTIVATIONS[activation].formula(exact)
    want_slope = torch.autograd.grad(want.sum(), exact)[0]
    size = x.abs().double().clamp(min=1)
    size = size * size if activation == "relu_square" else size
    eps = torch.finfo(F32).eps
    assert bool(((got.flatten().double() - want).abs() <= 4 * eps * size).all())
    assert bool(((slope.double() - want_slope).abs() <= 16 * eps * size).all())


def test_relu_slope_at_zero_is_torchs() -> None:
    zeros, k = torch.zeros(2, 1, 4), normal(3, 1, 4)
    offsets = {"q_offsets": offsets_of((2,)), "kv_offsets": offsets_of((3,))}
    run = partial(gdpa, **offsets, activation="relu", backend="triton")
    assert not gradients(run, [zeros, k, k])[1].any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_takes_int32_and_strided_inputs(dtype: torch.dtype) -> None:
    packed = normal(12, 2, 3, 16).transpose(1, 2)  # [L, 3, H, D] with foreign strides
    views = list(packed.unbind(1))
    offsets = offsets_of((5, 0, 7), dtype)
    run = partial(gdpa, q_offsets=offsets, kv_offsets=offsets, backend="triton")
    got = gradients(run, views)
    wide = offsets.repeat_interleave(2)[::2].long()
    run = partial(gdpa, q_offsets=wide, kv_offsets=wide, backend="triton")
    for a, b in zip(got, gradients(run, [x.mT.contiguous().mT for x in views]), strict=True):
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize(("poison", "keys"), [(float("nan"), 9), (float("inf"), 140)], ids=str)
def test_sample_is_bit_equal_whatever_its_neighbours_hold(
    poison: float, keys: int, table: int
) -> None:
    inputs, offsets = make((17, 18, 5), (keys,) * 3)
    run = partial(gdpa, **offsets, backend="triton")
    clean = gradients(run, inputs)
    owner = [offsets["q_offsets"], offsets["kv_offsets"], offsets["kv_offsets"]]
    own = [slice(int(x[1]), int(x[2])) for x in owner]
    dirty = []
    for x, rows in zip(inputs, own, strict=True):
        y = torch.full_like(x, poison)
        y[rows] = x[rows]
        dirty.append(y)
    for a, b, rows in zip(clean, gradients(run, dirty), [own[0], *own], strict=True):
        assert torch.equal(bits(a[rows]), bits(b[rows]))


@pytest.mark.parametrize(("length", "keys"), [(1, 140), (130, 9)])
def test_sample_is_bit_equal_whatever_its_neighbours_lengths(
    length: int, keys: int, table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SLICE", 64)
    alone, offsets = make((length,), (keys,), heads=1, kv_heads=1, dim=24)
    others, _ = make((5, 40, 150), (9, 300, 80), heads=1, kv_heads=1, dim=24)
    crowd = [torch.cat([x, y]) for x, y in zip(alone, others, strict=True)]
    together = {
        "q_offsets": offsets_of((length, 5, 40, 150)),
        "kv_offsets": offsets_of((keys, 9, 300, 80)),
    }
    by_itself = gradients(partial(gdpa, **offsets, backend="triton"), alone)
    in_a_crowd = gradients(partial(gdpa, **together, backend="triton"), crowd)
    for a, b in zip(by_itself, in_a_crowd, strict=True):
        assert torch.equal(bits(a), bits(b[: len(a)]))


def test_slices_of_long_samples_match_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SLICE", 64)
    monkeypatch.setitem(kernels.TABLES, (4, 64), kernels.TABLES[2, 64])
    inputs, offsets = make((64, 65, 300, 129, 5), (3, 100, 2, 0, 70), 4, 2, 24)
    run = partial(gdpa, backend="triton", scale=0.5, **offsets)
    assert_matches(run, partial(gdpa_reference, scale=0.5, **offsets), inputs, NAMES)


def test_runs_are_bit_equal(table: int) -> None:
    inputs, offsets = make((40, 3, 0, 70), (16, 140, 2, 70), heads=1, kv_heads=1)
    run = partial(gdpa, **offsets, backend="triton")
    for a, b in zip(gradients(run, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_no_samples_give_no_rows() -> None:
    inputs, offsets = make((), ())
    empty = {name: torch.zeros(1, dtype=torch.int64) for name in offsets}
    shapes = [x.shape for x in gradients(partial(gdpa, **empty, backend="triton"), inputs)]
    assert shapes == [(0, 2, 16)] * 4


@pytest.mark.parametrize("at_least_one", [False, True])
@pytest.mark.parametrize("buckets", [1, 3])
def test_work_lists_name_every_tile_once_most_work_first(buckets: int, at_least_one: bool) -> None:
    lengths = [int(x) for x in normal(130, seed=1).abs().mul(90)] + [0, 64, 65, 128, 129]
    work = [int(x) for x in normal(len(lengths), seed=2).abs().mul(9)]
    made = tiles.work_list(
        offsets_of(lengths),
        sum(lengths),
        48,
        work=offsets_of(work),
        buckets=buckets,
        at_least_one=at_least_one,
    )
    seen = []
    for bucket, items in enumerate(made.items):
        count = int(items[0])
        assert count <= made.bound
        pairs = items[1 : 1 + 2 * count].view(-1, 2).tolist()
        assert [work[b] for b, _ in pairs] == sorted((work[b] for b, _ in pairs), reverse=True)
        for b, _ in pairs:
            by_length = 0 if lengths[b] <= 64 else 1 if lengths[b] <= 128 else 2
            assert bucket == min(by_length, buckets - 1)
        seen += [tuple(pair) for pair in pairs]
    least = 1 if at_least_one else 0
    want = [(b, row) for b, n in enumerate(lengths) for row in range(0, max(n, least), 48)]
    assert sorted(seen) == want


def _refused(**kwargs: object) -> Callable[[], object]:
    return partial(choose, "gdpa", device="cpu", backend="triton", **kwargs)


def test_interpreter_is_chosen_only_when_asked_for() -> None:
    assert choose("gdpa", device="cpu", backend="triton") == Choice("triton", "asked for")
    assert choose("gdpa", device="cpu").backend != "triton"
    with pytest.raises(BackendError, match=r"compute float32, bfloat16 and float16 and the dtype "):
        _refused(dtype=torch.float64)()
    with pytest.raises(BackendError, match=rf"heads of {MAX_WIDTH} channels at most, not 129; use"):
        _refused(width=129)()
    with pytest.raises(BackendError, match=r"this release has no triton rotary"):
        choose("rotary", device="cpu", backend="triton")
