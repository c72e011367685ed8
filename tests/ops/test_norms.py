"""layer_norm, rms_norm and add_rms_norm against their float64 references."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kunlun.errors import BackendError, ShapeError
from kunlun.ops import add_rms_norm, layer_norm, native, rms_norm
from kunlun.ops.norms.op import (
    add_rms_norm_backward_op,
    add_rms_norm_op,
    row_norm_backward_op,
    row_norm_op,
)
from kunlun.ops.norms.reference import (
    add_rms_norm_reference,
    layer_norm_reference,
    rms_norm_reference,
)
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

NORMS = [(layer_norm, layer_norm_reference), (rms_norm, rms_norm_reference)]
each_norm = pytest.mark.parametrize(("norm", "reference"), NORMS, ids=["layer", "rms"])
each_backend = pytest.mark.parametrize("backend", BACKENDS)

CASES = [  # rows, width, dtype
    *((9, width, torch.float32) for width in (1, 3, 24, 32, 40, 256)),
    (1, 40, torch.float32),
    (0, 24, torch.float32),
    *((9, width, torch.bfloat16) for width in (3, 40)),
    (9, 24, torch.float16),
    (9, 24, torch.float64),
]


def case_id(case: tuple) -> str:
    return f"{case[0]}x{case[1]}-{str(case[2])[6:]}"


@each_norm
@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, case_id))
def test_norm_matches_reference(
    norm: Callable[..., Tensor], reference: Callable[..., Tensor], case: tuple, backend: str
) -> None:
    rows, width, dtype = case
    x = (3 * normal(rows, width, seed=1, dtype=torch.float64) + 1).to(dtype)
    assert_matches(partial(norm, backend=backend), reference, [x], ["x"])


@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, case_id))
def test_add_rms_norm_matches_reference(case: tuple, backend: str) -> None:
    rows, width, dtype = case
    inputs = [normal(rows, width, seed=s, dtype=dtype) for s in range(3)]
    run = partial(add_rms_norm, backend=backend)
    assert_matches(run, add_rms_norm_reference, inputs, ["s", "u", "y"])


@each_norm
@each_backend
@pytest.mark.parametrize("source", native.DTYPES, ids=lambda d: str(d)[6:])
def test_norm_writes_another_dtype(
    norm: Callable[..., Tensor], reference: Callable[..., Tensor], source: torch.dtype, backend: str
) -> None:
    target = torch.bfloat16 if source == torch.float32 else torch.float32
    x = normal(7, 24, dtype=source)
    got = gradients(partial(norm, dtype=target, backend=backend), [x])
    want = gradients(reference, [x.double()])
    assert [t.dtype for t in got] == [target, source]
    rounded = TOLERANCE[torch.bfloat16]  # in the gradient one operand is bfloat16 either way
    for a, b, bound in zip(got, want, (TOLERANCE[target], rounded), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)


@each_backend
def test_add_rms_norm_keeps_the_dtype_of_the_stream(backend: str) -> None:
    s, u, y = normal(7, 24), *(normal(7, 24, dtype=torch.bfloat16, seed=i) for i in (1, 2))
    got = gradients(partial(add_rms_norm, backend=backend), [s, u, y])
    want = gradients(add_rms_norm_reference, [x.double() for x in (s, u, y)])
    assert [t.dtype for t in got] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=2e-5)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("norm", [layer_norm, rms_norm], ids=["layer", "rms"])
@pytest.mark.parametrize("backend", [None, "portable"])
def test_norm_gradcheck(norm: Callable[..., Tensor], backend: str | None) -> None:
    x = normal(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(partial(norm, backend=backend), [x])


def test_add_rms_norm_gradcheck() -> None:
    x = [normal(3, 5, dtype=torch.float64, seed=s).requires_grad_() for s in range(3)]
    assert torch.autograd.gradcheck(add_rms_norm, x)


def test_registered_norms_gradcheck_without_the_library() -> None:
    x = [normal(3, 5, dtype=torch.float64, seed=s).requires_grad_() for s in range(3)]
    for centered in (True, False):
        run = partial(row_norm_op, centered=centered, dtype=torch.float64, backend="portable")
        assert torch.autograd.gradcheck(lambda x, run=run: run(x)[0], x[:1], atol=1e-6, rtol=1e-4)
    assert torch.autograd.gradcheck(lambda *x: add_rms_norm_op(*x, "portable")[0], x, rtol=1e-4)


@each_backend
def test_norms_take_any_shape_and_strides(backend: str) -> None:
    x = normal(6, 5, 4).permute(1, 2, 0)
    for norm in (layer_norm, rms_norm):
        strided = norm(x, backend=backend)
        assert torch.equal(strided, norm(x.contiguous(), backend=backend))
        assert torch.equal(strided[2, 3], norm(x[2, 3], backend=backend))
        wide = normal(5, 12)
        assert torch.equal(
            norm(wide[::2, 3:9], backend=backend), norm(wide[::2, 3:9].clone(), backend=backend)
        )
    inputs = (x, x.flip(0), x.roll(1, 0))
    plain = add_rms_norm(*(t.contiguous() for t in inputs), backend=backend)
    assert torch.equal(add_rms_norm(*inputs, backend=backend), plain)


@each_backend
@pytest.mark.parametrize("width", [3, 24, 40])
def test_norm_row_is_bit_equal_wherever_it_stands(backend: str, width: int) -> None:
    x = [normal(300, width, seed=s) for s in range(3)]
    runs = [layer_norm, rms_norm, add_rms_norm]
    for run, inputs in zip(runs, [x[:1], x[:1], x], strict=True):
        run = partial(run, backend=backend)
        everything, again = gradients(run, inputs), gradients(run, inputs)
        for a, b in zip(everything, again, strict=True):
            assert torch.equal(bits(a), bits(b))
        dirty = [torch.full_like(t, float("nan")) for t in inputs]
        for to, t in zip(dirty, inputs, strict=True):
            to[17] = t[17]
        assert torch.equal(bits(run(*dirty)[17]), bits(everything[0][17]))
        few = gradients(run, [t[:7] for t in inputs])
        for a, b in zip(few, everything, strict=True):
            assert torch.equal(bits(a), bits(b[:7]))


@needs_native
@pytest.mark.parametrize("isa", native.ISAS)
def test_every_instruction_set_norms(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(isa, monkeypatch)
    for width in (3, 24, 64):
        x = [normal(9, width, seed=s) for s in range(3)]
        for norm, reference in NORMS:
            assert_matches(partial(norm, backend="native"), reference, x[:1], ["x"])
        run = partial(add_rms_norm, backend="native")
        assert_matches(run, add_rms_norm_reference, x, ["s", "u", "y"])


@needs_native
def test_norm_bits_do_not_depend_on_the_number_of_threads() -> None:
    x, before = [normal(5000, 40, seed=s) for s in range(3)], torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([*gradients(layer_norm, x[:1]), *gradients(add_rms_norm, x)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(bits(a), bits(b))


def test_norms_opcheck() -> None:
    x = [normal(5, 8, seed=s).requires_grad_() for s in range(3)]
    for centered, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        torch.library.opcheck(row_norm_op, (x[0], centered, dtype))
    torch.library.opcheck(add_rms_norm_op, tuple(x))
    s, u, y = (t.detach() for t in x)
    out, rstd = row_norm_op(s, True, torch.float32)
    torch.library.opcheck(row_norm_backward_op, (y, out, rstd, True, torch.bfloat16))
    torch.library.opcheck(add_rms_norm_backward_op, (s, u, y, add_rms_norm_op(s, u, y)[1]))


REFUSED: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: layer_norm(torch.zeros(())), r"^x: expected \[\.\.\., D\], got shape \[\]$"),
    (lambda: rms_norm(torch.zeros(3, 0)), r"^x: expected \[\.\.\., D\], got shape \[3, 0\]$"),
    (lambda: rms_norm(torch.zeros(3, 2).long()), r"^x: expected a floating-point dtype, got "),
    (lambda: layer_norm(torch.zeros(3), dtype=torch.int8), r"^dtype: expected a floating-point "),
    (
        lambda: add_rms_norm(*(torch.zeros(n, 2) for n in (3, 4, 4))),
        r"^u: shape \[4, 2\] differs from s's \[3, 2\]$",
    ),
    (
        lambda: add_rms_norm(torch.zeros(1), torch.zeros(1), torch.zeros(1).double()),
        r"^y: dtype torch.float64 differs from u's torch.float32$",
    ),
    (
        lambda: add_rms_norm(torch.zeros(1), *(torch.zeros(1, device="meta"),) * 2),
        r"^u: on meta, but s is on cpu$",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m[1:30] for _, m in REFUSED])
def test_norms_name_the_argument_they_refuse(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


@needs_native
def test_forced_native_norm_that_cannot_run_says_why() -> None:
    for call in (
        lambda: layer_norm(torch.zeros(2, 3).half(), backend="native"),
        lambda: rms_norm(torch.zeros(2, 3), dtype=torch.float16, backend="native"),
    ):
        with pytest.raises(BackendError, match=r"^backend: the native library computes float32 "):
            call()
