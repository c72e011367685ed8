"""gelu_approx against torch's in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import BackendError, ShapeError
from kunlun.ops import gelu_approx, native
from kunlun.ops.gelu.op import gelu_approx_backward_op, gelu_approx_op
from tests.ops.helpers import (
    BACKENDS,
    TOLERANCE,
    assert_matches,
    bits,
    gradients,
    needs_native,
    normal,
    on_each_backend,
    use,
)

CASES = [(shape, dtype) for shape in [(0, 3), (1,), (7, 24), (3, 5, 9)] for dtype in TOLERANCE]


def reference(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize(
    ("case", "backend"), on_each_backend(CASES, lambda c: f"{c[0]}-{str(c[1])[6:]}")
)
def test_gelu_matches_float64(case: tuple, backend: str) -> None:
    shape, dtype = case
    x = 3 * normal(*shape, dtype=dtype)
    assert_matches(partial(gelu_approx, backend=backend), reference, [x], ["x"])


@needs_native
@pytest.mark.parametrize("isa", native.ISAS)
def test_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(isa, monkeypatch)
    x = torch.cat([torch.linspace(-12, 12, 999), torch.tensor([0.0, 1e4, -1e4])])
    assert_matches(partial(gelu_approx, backend="native"), reference, [x[:999]], ["x"])
    torch.testing.assert_close(gelu_approx(x[999:]), torch.tensor([0.0, 1e4, 0.0]))
    assert bool(gelu_approx(torch.full((3,), float("nan"))).isnan().all())


def test_gelu_gradcheck() -> None:
    x = normal(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(gelu_approx, [x])
    assert torch.autograd.gradcheck(partial(gelu_approx_op, backend="portable"), [x])


@needs_native
def test_gelu_bits_depend_on_the_element_only() -> None:
    x, before = normal(300, 201), torch.get_num_threads()
    run = partial(gelu_approx, backend="native")
    alone = gradients(run, [x])
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for a, b in zip(alone, gradients(run, [x]), strict=True):
                assert torch.equal(bits(a), bits(b))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(bits(run(x[7:9, 3:8])), bits(alone[0][7:9, 3:8]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_takes_strided_inputs(backend: str) -> None:
    x = normal(6, 5, 4).permute(1, 2, 0)
    got = gradients(partial(gelu_approx, backend=backend), [x])
    want = gradients(partial(gelu_approx, backend=backend), [x.contiguous()])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_gelu_refuses_integers(backend: str | None) -> None:
    with pytest.raises(ShapeError, match=r"^x: expected a floating-point dtype, got torch.int64$"):
        gelu_approx(torch.arange(3), backend=backend)


def test_gelu_opcheck_and_refusal() -> None:
    x = normal(5, 8)
    torch.library.opcheck(gelu_approx_op, (x.clone().requires_grad_(),))
    torch.library.opcheck(gelu_approx_backward_op, (x.clone(), x))
    if native.load().library is not None:
        with pytest.raises(BackendError, match=r"^backend: the native library computes float32 "):
            gelu_approx(x.half(), backend="native")


@needs_native
def test_hugely_negative_numbers_come_next_to_zero() -> None:
    x = torch.tensor([-20.0, -1e4, -1e30, -float("inf")])
    assert float(gelu_approx(x, backend="native").abs().max()) < 1e-20
