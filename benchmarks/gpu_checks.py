"""The correctness half of gpu.py: hard cases of every operator against float64.

A case passes if the result and every gradient are within a few roundings of the float64 reference,
measured against the largest entry; if two runs give the same bits; and if a sample computed alone
gives the bits it has among its neighbours. Memory that was never written holds NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kunlun.ops import gdpa, seed_attention, window_attention
from kunlun.ops.gdpa.reference import gdpa_reference
from kunlun.ops.seed_attention.reference import seed_attention_reference
from kunlun.ops.window_attention.reference import window_attention_reference

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-5}  # what is timed is checked first
FAST = 4e-3  # activations by the GPU's approximate tanh, whose relative error is near 2^-11

LENGTHS = {
    "empty first": (0, 4, 3),
    "empty middle": (4, 0, 0, 3),
    "empty last": (4, 3, 0),
    "all empty": (0, 0),
    "single rows": (1, 1, 1),
    "edges of tiles": (15, 16, 17, 63, 64, 65, 127, 128, 129, 256, 257),
    "one long": (2500, *(1,) * 20, 0, 2),
}
# Those whose code the interpreter cannot test, and two that it can.
ACTIVATIONS = ("fast_gelu", "fast_silu", "gelu", "hardswish")
Call = Callable[..., Tensor]


class Case(NamedTuple):
    """Inputs of one call, and who owns their rows."""

    operator: str
    label: str
    dtype: torch.dtype
    tolerance: float  # against the largest entry of a tensor, at least 1
    inputs: tuple[Tensor, ...]  # on the CPU, [rows, H, D], rounded to dtype
    owners: tuple[int | None, ...]  # which of `offsets` cuts each input; None: all share it
    offsets: tuple[Tensor, ...]
    result_owner: int | None  # the same for the result; None: a row a sample
    run: Call  # of (*inputs, *offsets, backend=)
    reference: Call  # of (*inputs, *offsets)
    varied: bool = False  # strided inputs, and int32 offsets the second time


def offsets_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def normal(rows: int, heads: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, heads, width, generator=generator).to(dtype)


def gdpa_case(
    label: str,
    lengths: tuple[int, ...],
    keys: tuple[int, ...],
    *,
    width: int,
    dtype: torch.dtype,
    activation: str = "gelu_approx",
    heads: int = 4,
    kv_heads: int = 4,
) -> Case:
    settings = {"activation": activation, "scale": width**-0.5, "out_scale": 0.5}
    q = normal(sum(lengths), heads, width, dtype, 1)
    k, v = (normal(sum(keys), kv_heads, width, dtype, seed) for seed in (2, 3))
    offsets = (offsets_of(lengths), offsets_of(keys))
    tolerance = max(TOLERANCE[dtype], FAST if activation.startswith("fast") else 0)
    name = f"{label}, {activation}, H {heads}/{kv_heads}, D {width}"
    run, reference = partial(gdpa, **settings), partial(gdpa_reference, **settings)
    owners = (0, 1, 1)
    return Case("gdpa", name, dtype, tolerance, (q, k, v), owners, offsets, 0, run, reference)


def window_case(
    label: str,
    lengths: tuple[int, ...],
    *,
    width: int,
    dtype: torch.dtype,
    window: int,
    causal: bool = False,
    heads: int = 4,
    kv_heads: int = 4,
) -> Case:
    settings = {"window": window, "causal": causal}
    q = normal(sum(lengths), heads, width, dtype, 1)
    k, v = (normal(sum(lengths), kv_heads, width, dtype, seed) for seed in (2, 3))
    name = f"{label}, window {window}{' causal' * causal}, H {heads}/{kv_heads}, D {width}"
    run = partial(window_attention, **settings)
    reference = partial(window_attention_reference, **settings)
    offsets = (offsets_of(lengths),)
    inputs, owners, tolerance = (q, k, v), (0, 0, 0), TOLERANCE[dtype]
    return Case("window", name, dtype, tolerance, inputs, owners, offsets, 0, run, reference)


def seed_case(
    label: str, lengths: tuple[int, ...], *, width: int, dtype: torch.dtype, seeds: int
) -> Case:
    x = normal(seeds, 4, width, dtype, 1)
    k, v = (normal(sum(lengths), 4, width, dtype, seed) for seed in (2, 3))
    name = f"{label}, S {seeds}, D {width}"
    offsets, owners = (offsets_of(lengths),), (None, 0, 0)
    run, reference = seed_attention, seed_attention_reference
    inputs, tolerance = (x, k, v), TOLERANCE[dtype]
    return Case("seeds", name, dtype, tolerance, inputs, owners, offsets, None, run, reference)


def cases(only: list[str], tiny: bool) -> Iterator[Case]:
    """Few widths, many lengths: a width compiles kernels of its own, a length does not.

    So do strides and the type of offsets, which vary in one case of an operator and dtype. All
    cases compile fewer than 125 kernels.
    """
    for dtype in TOLERANCE:
        wide = 16 if tiny else 128
        for width in (24,) if tiny else (24 if dtype == torch.bfloat16 else 40, 128):
            for label, lengths in LENGTHS.items():
                if tiny:
                    lengths = tuple(min(n, 70) for n in lengths)
                keys = tuple(reversed(lengths))
                kwargs: dict[str, Any] = {"width": width, "dtype": dtype}
                if "gdpa" in only:
                    yield gdpa_case(label, lengths, (7,) * len(lengths), **kwargs)
                    yield gdpa_case(f"{label} and keys", lengths, keys, **kwargs)
                if "window" in only:
                    yield window_case(label, lengths, window=7, **kwargs)
                    yield window_case(label, lengths, window=100, causal=True, **kwargs)
                if "seeds" in only:
                    yield seed_case(label, lengths, seeds=20, **kwargs)
        mixed = (5, 0, 70, 33)
        if "gdpa" in only:
            for name in ACTIVATIONS if dtype == torch.float32 else ACTIVATIONS[:1]:
                few = (4, 4, 0, 7)
                yield gdpa_case("mixed", mixed, few, width=wide, dtype=dtype, activation=name)
            yield gdpa_case("shared keys", mixed, mixed, width=wide, dtype=dtype, kv_heads=2)
            case = gdpa_case("strided", mixed, mixed, width=wide, dtype=dtype)
            yield case._replace(varied=True)
        if "window" in only:
            for window in (0, 10**9):
                yield window_case("mixed", mixed, width=wide, dtype=dtype, window=window)
            yield window_case("shared keys", mixed, width=wide, dtype=dtype, window=9, kv_heads=2)
            case = window_case("strided", mixed, width=wide, dtype=dtype, window=9)
            yield case._replace(varied=True)
        if "seeds" in only:
            for seeds in (1, 64, 200):
                yield seed_case("mixed", mixed, width=wide, dtype=dtype, seeds=seeds)
            case = seed_case("strided", mixed, width=wide, dtype=dtype, seeds=20)
            yield case._replace(varied=True)


def check(case: Case, device: torch.device, backend: str) -> dict[str, Any]:
    """One line of the report; `passed` says whether all of it holds."""
    names = ("result", *(f"gradient of input {i}" for i in range(len(case.inputs))))
    want = gradients(case.reference, [x.double() for x in case.inputs], case.offsets)
    run = partial(case.run, backend=backend)
    offsets = [x.to(device) for x in case.offsets]
    inputs = [x.to(device) for x in case.inputs]
    if case.varied:  # heads before rows in memory
        inputs = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
        got = gradients(run, inputs, offsets)
        again = gradients(run, inputs, [x.int() if case.varied else x for x in offsets])
        alone = _alone(case, run, inputs, got)
    finally:
        torch.use_deterministic_algorithms(False)
    errors = {
        name: float((a.cpu().double() - b).abs().max() / b.abs().max().clamp(min=1))
        for name, a, b in zip(names, got, want, strict=True)
        if b.numel()
    }
    repeats = all(_same(a, b) for a, b in zip(got, again, strict=True))
    within = all(error <= case.tolerance for error in errors.values())  # False for NaN
    return {
        "operator": case.operator,
        "case": case.label,
        "dtype": str(case.dtype)[6:],
        "errors": errors,
        "tolerance": case.tolerance,
        "repeats": repeats,
        "alone": alone,
        "passed": within and repeats and alone,
    }


def gradients(
    run: Call, inputs: list[Tensor], offsets: Any, outer: Tensor | None = None
) -> tuple[Tensor, ...]:
    """(result, gradient of each input) under a fixed outer gradient, or a given one."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = run(*leaves, *offsets)
    grads = torch.autograd.grad(out, leaves, (_outer(out) if outer is None else outer).to(out))
    return (out.detach(), *grads)


def _alone(case: Case, run: Call, inputs: list[Tensor], got: tuple[Tensor, ...]) -> bool:
    """Whether the longest sample gives the same bits without its neighbours."""
    sample = int(case.offsets[0].diff().argmax())
    bounds = [(int(x[sample]), int(x[sample + 1])) for x in case.offsets]
    result_rows = (sample, sample + 1)
    if case.result_owner is not None:
        result_rows = bounds[case.result_owner]

    def own(x: Tensor, owner: int | None) -> Tensor:
        return x if owner is None else x[slice(*bounds[owner])]

    outer = _outer(got[0])[slice(*result_rows)]
    parts = [own(x, owner) for x, owner in zip(inputs, case.owners, strict=True)]
    offsets = [offsets_of((end - begin,)).to(inputs[0].device) for begin, end in bounds]
    result, *grads = gradients(run, parts, offsets, outer)
    same = [_same(result, got[0][slice(*result_rows)])]
    for owner, alone, crowd in zip(case.owners, grads, got[1:], strict=True):
        if owner is not None:  # what all samples share sums over them
            same.append(_same(alone, own(crowd, owner)))
    return all(same)


def _outer(out: Tensor) -> Tensor:
    return torch.arange(out.numel(), dtype=torch.float64).sin().view(out.shape)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, up to the sign of a zero; NaN differs from everything."""
    return a.shape == b.shape and bool((a == b).all())


def captures(case: Case, device: torch.device, backend: str) -> bool:
    """Whether forward and backward can be recorded as a CUDA graph: nothing waits for the device.

    The replayed graph must give the bits of an ordinary call.
    """
    inputs, offsets = [x.to(device) for x in case.inputs], [x.to(device) for x in case.offsets]
    run = partial(case.run, backend=backend)
    leaves = [x.requires_grad_() for x in inputs]
    outer = torch.ones_like(run(*leaves, *offsets))

    def both() -> tuple[Tensor, ...]:
        out = run(*leaves, *offsets)
        return (out, *torch.autograd.grad(out, leaves, outer))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        want = both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both()
    graph.replay()
    torch.cuda.synchronize()
    return all(_same(a, b) for a, b in zip(got, want, strict=True))
