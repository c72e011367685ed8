"""rotary and rotary_split against their float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kunlun.errors import BackendError, ShapeError
from kunlun.ops import native, rotary, rotary_split
from kunlun.ops.rotary.op import rotary_backward_op, rotary_op
from kunlun.ops.rotary.reference import rotary_reference
from tests.ops.helpers import (
    BACKENDS,
    TOLERANCE,
    bits,
    gradients,
    needs_native,
    normal,
    on_each_backend,
    use,
)

CASES = [
    (rows, heads, dim, dtype)
    for rows, heads, dim in [(9, 3, 24), (1, 1, 2), (0, 2, 8), (70, 2, 40), (3, 1, 32)]
    for dtype in TOLERANCE
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def case_id(case: tuple) -> str:
    return "L{}-H{}-D{}-{}".format(*case[:3], str(case[3])[6:])


def split_reference(x: Tensor, angle: Tensor, turned: int) -> Tensor:
    """The parts [L, H, D] of x [L, P, H, D], stacked as they were, float64."""
    parts = [rotary_reference(part, angle) for part in x.unbind(1)[:turned]]
    return torch.stack([*parts, *x.double().unbind(1)[turned:]], dim=1)


def split(x: Tensor, angle: Tensor, turned: int, backend: str | None = None) -> Tensor:
    return torch.stack(rotary_split(x, angle, turned=turned, backend=backend), dim=1)


def assert_close(got: tuple[Tensor, ...], want: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        bound = max(TOLERANCE[dtype], 2e-5) * 6 * max(float(b.abs().max()) if b.numel() else 0, 1)
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=bound)


@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, case_id))
def test_rotary_matches_reference(case: tuple, backend: str) -> None:
    rows, heads, dim, dtype = case
    x = normal(rows, heads, dim, dtype=dtype)
    angle = normal(rows, dim // 2, seed=1) * 10
    got = gradients(partial(rotary, backend=backend), [x, angle])
    assert got[0].dtype == dtype
    assert_close(got, gradients(rotary_reference, [x.double(), angle.double()]), dtype)


@pytest.mark.parametrize(("parts", "turned"), [(3, 2), (2, 1), (4, 4)])
@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, case_id))
def test_rotary_split_matches_reference(case: tuple, parts: int, turned: int, backend: str) -> None:
    rows, heads, dim, dtype = case
    x = normal(rows, parts, heads, dim, dtype=dtype)
    angle = normal(rows, dim // 2, seed=1) * 10
    got = gradients(partial(split, turned=turned, backend=backend), [x, angle])
    reference = partial(split_reference, turned=turned)
    assert_close(got, gradients(reference, [x.double(), angle.double()]), dtype)
    assert all(p.is_contiguous() for p in rotary_split(x, angle, turned=turned, backend=backend))


@each_backend
def test_rotary_split_without_a_gradient_for_angles_or_for_one_part(backend: str) -> None:
    x, angle = normal(5, 3, 2, 8).requires_grad_(), normal(5, 4, seed=1)
    q, _, v = rotary_split(x, angle, turned=2, backend=backend)
    (dx,) = torch.autograd.grad(q.square().sum() + v.sum(), x)
    torch.testing.assert_close(dx[:, 0], 2 * x[:, 0])  # a rotation keeps lengths
    assert not dx[:, 1].any()
    assert torch.equal(dx[:, 2], torch.ones(5, 2, 8))


each_isa = pytest.mark.parametrize("isa", native.ISAS)


@needs_native
@each_isa
def test_large_angles_are_turned_exactly(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(isa, monkeypatch)
    far = torch.tensor([1e3, 16384.0, -3e5, 2.0**27, 2.0**28, -1e12, 1e30, 0.0])
    x = torch.tensor([1.0, 0.0]).repeat(8, 1)[:, None]
    got = rotary(x, far[:, None], backend="native")
    want = torch.stack([far.double().cos(), far.double().sin()], dim=1)[:, None]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-7)
    lost = torch.tensor([float("nan"), float("inf"), 1.0])[:, None]
    assert rotary(x[:3], lost, backend="native")[:, 0, 0].isnan().tolist() == [True, True, False]


@needs_native
@each_isa
def test_every_instruction_set_turns(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(isa, monkeypatch)
    for dim in (2, 8, 24, 64):
        inputs = [normal(70, 3, 2, dim), normal(70, dim // 2, seed=1) * 10]
        got = gradients(partial(split, turned=2, backend="native"), inputs)
        reference = partial(split_reference, turned=2)
        assert_close(got, gradients(reference, [x.double() for x in inputs]), torch.float32)


@needs_native
def test_rotary_bits_do_not_depend_on_the_number_of_threads() -> None:
    inputs, before = [normal(1000, 2, 2, 24), normal(1000, 12, seed=1)], torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(partial(split, turned=1, backend="native"), inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(bits(a), bits(b))


def test_rotary_gradcheck() -> None:
    x, angle = normal(3, 2, 6, dtype=torch.float64), normal(3, 3, dtype=torch.float64, seed=1)
    assert torch.autograd.gradcheck(rotary, [x.requires_grad_(), angle.requires_grad_()])
    parts = normal(3, 3, 2, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(partial(split, turned=2), [parts, angle])


def test_rotary_products_depend_on_differences_of_angles_only() -> None:
    q, k, angle = normal(2, 1, 8), normal(2, 1, 8, seed=1), normal(2, 4, seed=2)
    shift = normal(1, 4, seed=3)
    before = (rotary(q, angle)[0] * rotary(k, angle)[1]).sum()
    after = (rotary(q, angle + shift)[0] * rotary(k, angle + shift)[1]).sum()
    torch.testing.assert_close(before, after)


@each_backend
def test_rotary_takes_strided_inputs(backend: str) -> None:
    x, angle = normal(8, 3, 5).permute(2, 1, 0), normal(4, 5).T
    run = partial(rotary, backend=backend)
    assert torch.equal(run(x, angle), run(x.contiguous(), angle.contiguous()))
    fused = normal(5, 9, 8)[:, 1:7].view(5, 3, 2, 8)
    some = normal(5, 9)[:, 2:6]
    plain = split(fused.clone(), some.clone(), turned=2, backend=backend)
    assert torch.equal(split(fused, some, turned=2, backend=backend), plain)


@each_backend
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dim", [4, 8, 16, 24])
def test_rotary_row_is_bit_equal_wherever_it_stands(heads: int, dim: int, backend: str) -> None:
    x, angle = normal(137, heads, dim), normal(137, dim // 2, seed=1) * 10
    run: Callable[..., Tensor] = partial(rotary, backend=backend)
    everything = run(x, angle)
    for rows in (1, 2, 3, 5, 8, 13, 136):
        assert torch.equal(bits(run(x[:rows], angle[:rows])), bits(everything[:rows]))
        assert torch.equal(bits(run(x[-rows:], angle[-rows:])), bits(everything[-rows:]))
    for a, b in zip(gradients(run, [x, angle]), gradients(run, [x, angle]), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_rotary_opcheck() -> None:
    x, angle = normal(5, 3, 2, 8).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    torch.library.opcheck(rotary_op, (x, angle, 2, ""))
    outs = rotary_op(x.detach(), angle.detach(), 2, "")
    for by_angle in (True, False):
        args = ([t.clone() for t in outs], outs[:2], angle.detach(), by_angle, "")
        torch.library.opcheck(rotary_backward_op, args)


def test_rotary_split_names_the_argument_it_refuses() -> None:
    x, angle = normal(5, 3, 2, 8), normal(5, 4)
    with pytest.raises(ShapeError, match=r"^turned: 4 of 3 parts$"):
        rotary_split(x, angle, turned=4)
    with pytest.raises(ShapeError, match=r"^x: expected \[L, P, H, D\], got shape \[5, 2, 8\]$"):
        rotary_split(x[:, 0], angle, turned=1)


@needs_native
def test_forced_native_rotary_that_cannot_run_says_why() -> None:
    x, angle = normal(5, 2, 8), normal(5, 4)
    for args in ((x.half(), angle), (x, angle.double())):
        with pytest.raises(BackendError, match=r"^backend: the native library computes float32 "):
            rotary(*args, backend="native")


@each_backend
@pytest.mark.parametrize("compiled", [False, True])
def test_rotary_of_frozen_rows_teaches_the_angles(backend: str, compiled: bool) -> None:
    x, angle = normal(6, 3, 2, 8), normal(6, 4, seed=1)

    def angle_grad(x: Tensor) -> Tensor:
        run = partial(split, turned=2, backend=backend)
        run = torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run
        turned = angle.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run(x, turned).cumsum(0).square().sum(), [turned])
        return grad

    frozen, free = angle_grad(x), angle_grad(x.clone().requires_grad_())
    assert frozen.abs().max() > 0.1
    assert torch.equal(frozen, free)
