"""Inputs and comparisons the operator tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from kunlun.ops import native
from kunlun.ops.native import DTYPES as NATIVE_DTYPES
from kunlun.ops.native import build

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}

LENGTHS = {
    "one": (5,),
    "empty-first": (0, 4, 3),
    "empty-middle": (4, 0, 0, 3),
    "empty-last": (4, 3, 0),
    "all-empty": (0, 0),
    "single-rows": (1, 1, 1),
    "buckets": (15, 16, 17, 18, 33, 35, 64, 65, 66, 100, 129),
    "skewed": (300, *(1,) * 20, 0, 2),
}


def _why_no_compiler() -> str:
    try:
        build.compiler()
    except build.BuildError as error:
        return str(error)
    return ""


# A library that is missing although there is a compiler fails.
needs_native = pytest.mark.skipif(bool(_why_no_compiler()), reason=_why_no_compiler())
BACKENDS = ["portable", pytest.param("native", marks=needs_native)]


def use(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's code for one instruction set; skips where the machine has it not."""
    library = native.load().library
    assert library is not None
    if native.ISAS.index(isa) > library.isa:
        pytest.skip(f"this machine has no {isa}")
    chosen = native.Loaded(library._replace(isa=native.ISAS.index(isa)), isa)
    monkeypatch.setattr(native, "load", lambda: chosen)


def on_each_backend(cases: Sequence[tuple], case_id: Callable[[tuple], str]) -> list:
    """Parameters (case, backend); a case ends with its dtype, which the backend must compute."""
    return [
        pytest.param(case, backend, id=f"{case_id(case)}-{backend}", marks=marks)
        for case in cases
        for backend, marks in (("portable", ()), ("native", needs_native))
        if backend == "portable" or case[-1] in NATIVE_DTYPES
    ]


def offsets_of(lengths: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(result, gradient of each input) under a fixed outer gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = run(*leaves)
    outer = torch.arange(out.numel()).double().sin().view(out.shape)  # a prefix stays a prefix
    grads = torch.autograd.grad(out, leaves, outer.to(out.dtype))
    return (out.detach(), *grads)


def assert_matches(
    run: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """Result and every gradient of `run` against `reference` in float64 on the same inputs.

    The tolerance is a few roundings of the dtype against the largest entry, so a wrong row of
    ordinary size cannot hide.
    """
    got = gradients(run, inputs)
    want = gradients(reference, [x.double() for x in inputs])
    for name, a, b in zip(["result", *(f"d{n}" for n in names)], got, want, strict=True):
        assert a.shape == b.shape, name
        bound = TOLERANCE[inputs[0].dtype] * max(float(b.abs().max()) if b.numel() else 0, 1.0)
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )


def bits(x: Tensor) -> Tensor:
    """For comparisons in which NaN equals itself and -0 does not equal 0."""
    return x.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])
