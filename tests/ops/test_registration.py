"""What torch is told about the operators: schema, tracing, FLOPs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kunlun.ops import (
    add_rms_norm,
    flops,
    gdpa,
    gelu_approx,
    layer_norm,
    mix_rows,
    native,
    rms_norm,
    rotary,
    rotary_split,
    seed_attention,
    sum_kron,
    window_attention,
)
from kunlun.ops.gdpa.op import gdpa_backward_op, gdpa_op
from kunlun.ops.norms.op import add_rms_norm_op, row_norm_op
from kunlun.ops.registration import constant
from kunlun.ops.seed_attention.op import seed_attention_backward_op, seed_attention_op
from kunlun.ops.sum_kron.op import sum_kron_op
from kunlun.ops.window_attention.op import window_attention_backward_op, window_attention_op
from tests.ops.helpers import BACKENDS, normal, offsets_of

LENGTHS, KEYS = (5, 0, 3, 70), (2, 2, 3, 4)
H, D, S, W = 2, 8, 3, 4


def leaf(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(rows, H, D, seed=seed, dtype=dtype).requires_grad_()


def run_gdpa() -> tuple[Tensor, list[Tensor]]:
    q, k, v = leaf(78), leaf(11, 1), leaf(11, 2)
    return gdpa(q, k, v, offsets_of(LENGTHS), offsets_of(KEYS)), [q, k, v]


def run_window() -> tuple[Tensor, list[Tensor]]:
    x = [leaf(78, s) for s in range(3)]
    return window_attention(*x, offsets_of(LENGTHS), window=W), x


def run_causal() -> tuple[Tensor, list[Tensor]]:
    x = [leaf(78, s) for s in range(3)]
    return window_attention(*x, offsets_of(LENGTHS), window=W, causal=True), x


def run_seeds() -> tuple[Tensor, list[Tensor]]:
    x = [leaf(S), leaf(78, 1), leaf(78, 2)]
    return seed_attention(*x, offsets_of(LENGTHS)), x


def brute_pairs(window: int, causal: bool) -> int:
    def inside(i: int, j: int) -> bool:
        return abs(i - j) <= window and not (causal and j > i)

    return sum(inside(i, j) for n in LENGTHS for i in range(n) for j in range(n))


PAIRS = {
    run_gdpa: sum(q * k for q, k in zip(LENGTHS, KEYS, strict=True)),
    run_window: brute_pairs(W, False),
    run_causal: brute_pairs(W, True),
    run_seeds: sum(LENGTHS) * S,
}


@pytest.mark.parametrize("run", PAIRS, ids=lambda f: f.__name__)
def test_flop_counter_sees_useful_flops_only(
    run: Callable[[], tuple[Tensor, list[Tensor]]],
) -> None:
    with FlopCounterMode(display=False) as forward:
        out, leaves = run()
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out.sum(), leaves)
    assert forward.get_total_flops() == 4 * H * D * PAIRS[run]
    assert backward.get_total_flops() == 10 * H * D * PAIRS[run]


def test_flop_formulas_take_python_numbers() -> None:
    assert flops.gdpa_flops(10, 2, 4) == 320
    assert flops.gdpa_backward_flops(10, 2, 4) == 800
    assert flops.seed_attention_flops(rows=10, seeds=3, heads=2, dim=4) == 960
    assert flops.seed_attention_backward_flops(rows=10, seeds=3, heads=2, dim=4) == 2400
    assert flops.window_attention_flops(7.5, 2, 4) == 240


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("window", [0, 1, 4, 100])
def test_window_pairs_counts_the_band(length: int, window: int, causal: bool) -> None:
    inside = [
        abs(i - j) <= window and not (causal and j > i)
        for i in range(length)
        for j in range(length)
    ]
    assert flops.window_pairs(length, window, causal) == sum(inside)


def test_flops_on_meta_tensors_use_average_lengths() -> None:
    q, k = torch.empty(80, H, D, device="meta"), torch.empty(20, H, D, device="meta")
    offsets = torch.empty(5, dtype=torch.int64, device="meta")
    seeds = torch.empty(S, H, D, device="meta")
    with FlopCounterMode(display=False) as counter:
        gdpa(q, k, k, offsets, offsets)
    assert counter.get_total_flops() == 4 * H * D * 4 * 20 * 5
    with FlopCounterMode(display=False) as counter:
        window_attention(q, q, q, offsets, window=W)
    assert counter.get_total_flops() == 4 * H * D * 4 * flops.window_pairs(20, W)
    with FlopCounterMode(display=False) as counter:
        seed_attention(seeds, q, q, offsets)
    assert counter.get_total_flops() == 4 * H * D * 80 * S


def test_gdpa_opcheck() -> None:
    args = (leaf(78), leaf(11, 1), leaf(11, 2), offsets_of(LENGTHS), offsets_of(KEYS))
    settings = (",".join(["silu"] * H), 0.5, 1.0)
    torch.library.opcheck(gdpa_op, (*args, *settings))
    detached = [x.detach() for x in args]
    torch.library.opcheck(gdpa_backward_op, (detached[0], *detached, *settings))


def test_window_attention_opcheck() -> None:
    x = [leaf(78, s) for s in range(3)]
    offsets = offsets_of(LENGTHS)
    torch.library.opcheck(window_attention_op, (*x, offsets, W, False, 0.3))
    d = [t.detach() for t in x]
    out, lse = window_attention_op(*d, offsets, W, False, 0.3)
    torch.library.opcheck(
        window_attention_backward_op, (out.clone(), *d, out, lse, offsets, W, False, 0.3)
    )


def test_seed_attention_opcheck() -> None:
    x = [leaf(S), leaf(78, 1), leaf(78, 2)]
    offsets = offsets_of(LENGTHS)
    torch.library.opcheck(seed_attention_op, (*x, offsets, 0.3))
    d = [t.detach() for t in x]
    out, lse = seed_attention_op(*d, offsets, 0.3)
    torch.library.opcheck(seed_attention_backward_op, (out.clone(), *d, out, lse, offsets, 0.3))


def test_operators_export_with_dynamic_lengths() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, k: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
            x = gdpa(x, k, k, rows, keys)
            x = window_attention(x, x, x, rows, window=W)
            return seed_attention(k[:1], x, x, rows)

    args = (leaf(78).detach(), leaf(11, 1).detach(), offsets_of(LENGTHS), offsets_of(KEYS))
    dim = torch.export.Dim
    n = dim("n", min=3)
    shapes = ({0: dim("rows")}, {0: dim("keys")}, {0: n}, {0: n})
    program = torch.export.export(Module(), args, dynamic_shapes=shapes)
    other = (leaf(9).detach(), leaf(5, 1).detach(), offsets_of((9, 0)), offsets_of((1, 4)))
    assert torch.equal(program.module()(*other), Module()(*other))


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_operators_compile_whole(backend: str | None) -> None:
    def run(x: Tensor, k: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
        x = gdpa(x, k, k, rows, keys, backend=backend)
        x = window_attention(x, x, x, rows, window=W, backend=backend)
        return seed_attention(k[:1], x, x, rows, backend=backend)

    args = (leaf(78), leaf(11, 1), offsets_of(LENGTHS), offsets_of(KEYS))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    got, want = compiled(*args), run(*args)
    assert torch.equal(got, want)
    ours, eager = (torch.autograd.grad(out.sum(), args[:2]) for out in (got, want))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


def run_rows(x: Tensor, angle: Tensor, z: Tensor, w: Tensor, backend: str | None = None) -> Tensor:
    """Every row-wise operator on x [L, 3, 2, 8], angle [L, 4], z [2, 3], w [1, 8, 4]."""
    q, k, v = rotary_split(layer_norm(x, backend=backend), angle, turned=2, backend=backend)
    v = rotary(rms_norm(v, backend=backend), angle, backend=backend)
    y = gelu_approx(add_rms_norm(q, k, v, backend=backend), backend=backend)
    return sum_kron(mix_rows(y, z), z.T[None], w)


def rows_input(length: int) -> tuple[Tensor, ...]:
    shapes = [(length, 3, 2, 8), (length, 4), (2, 3), (1, 8, 4)]
    return tuple(normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))


def test_row_operators_export_with_dynamic_lengths() -> None:
    class Module(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return run_rows(*args)

    rows = torch.export.Dim("rows")
    shapes = (({0: rows}, {0: rows}, None, None),)
    args = tuple(x.detach() for x in rows_input(70))
    program = torch.export.export(Module(), args, dynamic_shapes=shapes)
    other = tuple(x.detach() for x in rows_input(9))
    assert torch.equal(program.module()(*other), Module()(*other))


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_row_operators_compile_whole(backend: str | None) -> None:
    args = rows_input(70)
    compiled = torch.compile(run_rows, fullgraph=True, backend="aot_eager", dynamic=True)
    got, want = compiled(*args, backend), run_rows(*args, backend)
    torch.testing.assert_close(got, want)
    ours, eager = (torch.autograd.grad(out.sum(), args) for out in (got, want))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_a_program_exported_with_the_library_runs_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Module(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return run_rows(*args)

    args = tuple(x.detach() for x in rows_input(9))
    program = torch.export.export(Module(), args).module()
    want = program(*args)
    monkeypatch.setattr(native, "load", lambda: native.Loaded(None, "taken away"))
    torch.testing.assert_close(program(*args), want)


@pytest.mark.parametrize("run", PAIRS, ids=lambda f: f.__name__)
def test_a_second_derivative_is_refused(run: Callable[[], tuple[Tensor, list[Tensor]]]) -> None:
    out, leaves = run()
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(first[0].sum(), leaves)


def test_the_second_derivative_of_rows_is_refused_too() -> None:
    args = rows_input(5)
    first = torch.autograd.grad(run_rows(*args).square().sum(), args, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(first[0].sum(), args)


def test_without_gradients_nothing_is_kept() -> None:
    args = rows_input(5)
    with torch.no_grad():
        off = run_rows(*args)
    on, detached = run_rows(*args), run_rows(*(x.detach() for x in args))
    assert on.requires_grad
    assert not off.requires_grad
    assert not detached.requires_grad
    assert torch.equal(on, off)
    assert torch.equal(on, detached)


def test_a_result_of_several_that_nobody_reads_has_gradient_zero() -> None:
    x, angle, *_ = rows_input(5)
    q, _, _ = rotary_split(x, angle, turned=2)
    (dx,) = torch.autograd.grad(q.sum(), [x])
    assert dx[:, 0].any()
    assert not dx[:, 1:].any()


def test_create_graph_reads_what_was_saved_once() -> None:
    """Non-reentrant checkpoints refuse to recompute a tensor twice."""
    x = leaf(5)
    y = checkpoint(lambda x: rms_norm(x).square(), x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
    assert grad.abs().max() > 0
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(grad.sum(), [x])


def test_what_is_kept_for_the_backward_has_no_gradient() -> None:
    x = leaf(5)[:, 0]
    assert not row_norm_op(x, True, torch.float32)[1].requires_grad
    assert not add_rms_norm_op(x, x, x)[1].requires_grad
    z, w = normal(1, 5, 2).requires_grad_(), normal(1, D, 3)
    assert not sum_kron_op(x[None], z, w)[1].requires_grad


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_is_refused(grad: bool) -> None:
    """A result without a tangent would be taken for a constant."""
    x = normal(5, D)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match="jvp"):
            rms_norm(dual)


def test_a_constant_is_what_torch_takes_for_one() -> None:
    ours, torchs = (mark(lambda: 0) for mark in (constant, torch.compiler.assume_constant_result))
    assert vars(ours) == vars(torchs) != {}
