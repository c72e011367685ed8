"""hstu_attention against its float64 reference, and the promises of its docstring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kunlun.bench import clock
from kunlun.errors import BackendError, ShapeError
from kunlun.ops import choose, hstu_attention
from kunlun.ops.flops import window_pairs
from kunlun.ops.hstu_attention.op import hstu_attention_backward_op, hstu_attention_op
from kunlun.ops.hstu_attention.reference import hstu_attention_reference
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

NAMES = ("q", "k", "v", "position_bias", "time_bias")
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
Run = Callable[..., Tensor]


def make(
    lengths: tuple[int, ...], heads: int = 2, dim: int = 16, dtype: torch.dtype = F32
) -> tuple[list[Tensor], Tensor, Tensor]:
    """([q, k, v, position table, time table], offsets, seconds before the request)."""
    n = sum(lengths)
    rows = [normal(n, heads, dim, dtype=dtype, seed=s) for s in (1, 2, 3)]
    tables = [normal(p, dtype=dtype, seed=s) for p, s in ((9, 4), (40, 5))]
    time = normal(n, seed=6).mul(4).exp().cumsum(0).flip(0)  # from parts of seconds to weeks
    return [*rows, *tables], offsets_of(lengths), time


def on(run: Run, offsets: Tensor, time: Tensor, **kwargs: object) -> Run:
    """The operator as a function of what has gradients."""
    return lambda q, k, v, p, t: run(q, k, v, offsets, time, p, t, **kwargs)


CASES = [  # lengths, window, H, D, dtype
    *[(lengths, None, 2, 16, F32) for lengths in LENGTHS.values()],
    (LENGTHS["buckets"], 0, 2, 24, F32),
    (LENGTHS["buckets"], 10, 4, 40, F32),
    (LENGTHS["buckets"], 32, 4, 16, BF16),
    (LENGTHS["skewed"], 70, 2, 8, F64),
    ((257, 256, 255), 20, 3, 8, F32),
    ((700,), 150, 8, 8, torch.float16),
    ((700,), None, 8, 8, F32),
    ((130, 20), None, 3, 5, F32),
    ((40, 260), 129, 2, 129, F32),
]


def _case_id(case: tuple) -> str:
    lengths, window, heads, dim, dtype = case
    shown = ".".join(map(str, lengths))[:24]
    return f"L{shown}-w{window}-H{heads}-D{dim}-{str(dtype)[6:]}"


@pytest.mark.parametrize(("case", "backend"), on_each_backend(CASES, _case_id))
def test_hstu_attention_matches_reference(case: tuple, backend: str) -> None:
    lengths, window, heads, dim, dtype = case
    inputs, offsets, time = make(lengths, heads, dim, dtype)
    kwargs = {"window": window, "out_scale": 0.1}
    assert_matches(
        on(hstu_attention, offsets, time, backend=backend, **kwargs),
        on(hstu_attention_reference, offsets, time, **kwargs),
        inputs,
        NAMES,
    )


def pair(backend: str, offsets: Tensor, time: Tensor, **kwargs: object) -> tuple[Run, Run]:
    """The operator on a backend, and the reference."""
    ours = on(hstu_attention, offsets, time, backend=backend, **kwargs)
    return ours, on(hstu_attention_reference, offsets, time, **kwargs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hstu_attention_takes_a_scale(backend: str) -> None:
    inputs, offsets, time = make((9, 4))
    assert_matches(*pair(backend, offsets, time, scale=3.0), inputs, NAMES)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tables", [(1, 1), (1, 80), (30, 1), (200, 64), (2, 33)], ids=str)
def test_hstu_attention_takes_any_number_of_buckets(tables: tuple[int, int], backend: str) -> None:
    inputs, offsets, time = make((20, 0, 3))
    inputs[3:] = [normal(n) for n in tables]
    assert_matches(*pair(backend, offsets, time), inputs, NAMES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_times_keep_their_seconds(backend: str) -> None:
    """Since 1970 in float32 they would be two minutes apart or not at all."""
    inputs, offsets, _ = make((40, 3))
    time = 1.7e9 + normal(43, dtype=F64, seed=6).exp().cumsum(0)
    assert_matches(*pair(backend, offsets, time), inputs, NAMES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_has_two_buckets_an_octave(backend: str) -> None:
    gaps = [0.0, 0.99, 1.0, 1.49, 1.5, 2.0, 3.0, 3.9, 4.0, 6.0, 4e9]
    one = torch.ones(len(gaps) * 2, 1, 1)
    time = torch.tensor([x for gap in gaps for x in (1e-30, gap)], dtype=F64)
    offsets = offsets_of((2,) * len(gaps))
    table = torch.arange(64.0) * 100
    # row 1 of a pair holds silu(0 + table[0]) + silu(0 + table[bucket]) = 0 + 100 * bucket
    rest = (offsets, time, torch.zeros(1), table)
    out = hstu_attention(0 * one, one, one, *rest, backend=backend)
    assert (out[1::2, 0, 0] / 100).round().tolist() == [0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 63]


@pytest.mark.parametrize("between", [0, 30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_just_below_a_bucket_is_not_rounded_into_it(backend: str, between: int) -> None:
    """In float32 all of these are at the bucket's beginning. between: rows of another time, so that
    whole vectors are read and not only what is left of one."""
    gaps = [start * (1 - 1e-12) for start in (1.0, 1.5, 2.0, 4096.0, 6144.0)]
    time = torch.tensor([x for gap in gaps for x in (0.0, *[2.0**40] * between, gap)], dtype=F64)
    length = 2 + between
    offsets = offsets_of((length,) * len(gaps))
    values = torch.zeros(len(time), 1, 1)
    values[::length] = 1
    rest = (offsets, time, torch.zeros(1), torch.arange(64.0) * 100)
    out = hstu_attention(0 * values, 0 * values, values, *rest, backend=backend)
    assert (out[length - 1 :: length, 0, 0] / 100).round().tolist() == [0, 1, 2, 24, 25]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_row_reads_an_earlier_one_and_not_the_other_way(backend: str) -> None:
    inputs, offsets, time = make((6,))
    run = on(hstu_attention, offsets, time, backend=backend)
    before = run(*inputs)
    inputs[2] = inputs[2].clone()
    inputs[2][3] += 1
    changed = (run(*inputs) != before).flatten(1).any(1)
    assert changed.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_hstu_attention_takes_int32_and_strided_inputs(dtype: torch.dtype, backend: str) -> None:
    inputs, _, time = make((5, 0, 7))
    q, k, v = normal(12, 2, 3, 16).transpose(1, 2).unbind(1)
    rows = offsets_of((5, 0, 7), dtype)
    dense = [x.contiguous() for x in (q, k, v)]
    apart = torch.stack([time, time], 1)[:, 0]
    assert torch.equal(
        hstu_attention(q, k, v, rows, apart, *inputs[3:], backend=backend),
        hstu_attention(*dense, rows.long(), time, *inputs[3:], backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_rows_take_float32_tables(backend: str) -> None:
    inputs, offsets, time = make((20, 3), dtype=BF16)
    inputs[3:] = [x.float() for x in inputs[3:]]
    out, *grads = gradients(on(hstu_attention, offsets, time, backend=backend), inputs)
    assert [x.dtype for x in (out, *grads)] == [BF16] * 4 + [F32] * 2


@pytest.mark.parametrize("window", [None, 1])
def test_hstu_attention_gradcheck(window: int | None) -> None:
    inputs, offsets, time = make((3, 0, 4), dim=4, dtype=F64)
    run = on(hstu_attention, offsets, time, window=window)
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 7.0], ids=str)
@pytest.mark.parametrize("sample", [1, 4, 6])
def test_hstu_attention_sample_is_bit_equal_whatever_its_neighbours_hold(
    sample: int, poison: float, backend: str
) -> None:
    lengths = (70, 66, 67, 5, 5, 5, 300)
    inputs, offsets, time = make(lengths)
    own = slice(int(offsets[sample]), int(offsets[sample + 1]))
    dirty = [torch.full_like(x, poison) for x in (*inputs[:3], time)]
    for x, y in zip((*inputs[:3], time), dirty, strict=True):
        y[own] = x[own]
    clean = gradients(on(hstu_attention, offsets, time, backend=backend), inputs)
    run = on(hstu_attention, offsets, dirty[3], backend=backend)
    other = gradients(run, [*dirty[:3], *inputs[3:]])
    for a, b in zip(clean[:4], other[:4], strict=True):
        assert torch.equal(bits(a[own]), bits(b[own]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 10])
@pytest.mark.parametrize("length", [1, 7, 16, 18, 50, 67, 130, 300])
def test_hstu_attention_sample_is_bit_equal_whatever_its_neighbours_lengths(
    length: int, window: int | None, backend: str
) -> None:
    alone, offsets, time = make((length,), heads=3, dim=24)
    others, _, later = make((5, 40, length, 1), heads=3, dim=24)
    crowd = [torch.cat([x, y]) for x, y in zip(alone[:3], others[:3], strict=True)]
    many, times = offsets_of((length, 5, 40, length, 1)), torch.cat([time, later])
    settings = {"window": window, "backend": backend}
    by_itself = gradients(on(hstu_attention, offsets, time, **settings), alone)
    run = on(hstu_attention, many, times, **settings)
    in_crowd = gradients(run, [*crowd, *alone[3:]])
    for a, b in zip(by_itself[:4], in_crowd[:4], strict=True):
        assert torch.equal(bits(a), bits(b[:length]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hstu_attention_runs_are_bit_equal(backend: str) -> None:
    inputs, offsets, time = make((50, 3, 0, 300))
    run = on(hstu_attention, offsets, time, backend=backend)
    for a, b in zip(gradients(run, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(bits(a), bits(b))


@needs_native
@pytest.mark.parametrize("window", [None, 1100])
def test_native_bits_do_not_depend_on_the_number_of_threads(window: int | None) -> None:
    """Several threads share a forward of more than 1024 rows."""
    inputs, offsets, time = make((2100, 3, 0, 300), dim=8)
    run = on(hstu_attention, offsets, time, window=window, backend="native")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            results.append(gradients(run, inputs))
        finally:
            torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(bits(a), bits(b))


@needs_native
@pytest.mark.parametrize("heads", [8, 5])
def test_native_groups_of_heads_agree_with_the_reference(heads: int) -> None:
    """k and v outgrow a core's cache: an item reads some heads only, of a short sample more."""
    inputs, offsets, time = make((600, 0, 250, 40), heads=heads, dim=64)
    assert_matches(*pair("native", offsets, time, out_scale=0.1), inputs, NAMES)


@needs_native
def test_native_scratch_is_that_of_a_head_however_skewed_the_lengths() -> None:
    """Among short samples a long one must not be read by all its heads at once."""
    rows, heads, dim = 16384, 16, 16
    inputs, offsets, time = make((rows, *(1,) * 1000), heads=heads, dim=dim)
    arguments = (*inputs[:3], offsets, time, *inputs[3:], 16, 0.3, 0.1, "native")
    grad = inputs[0].clone()
    with clock.Memory(torch.device("cpu")) as memory:
        results = hstu_attention_backward_op(grad, *arguments)
    if memory.peak is None:
        pytest.skip("no /proc/self/clear_refs")
    one = 5 * rows * dim * 4  # bytes of k and v in their forms, and of their gradients
    assert memory.peak <= sum(x.nbytes for x in results) + 4 * one


class _Largest(TorchDispatchMode):
    """Largest number of elements any operation returned."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.seen = max(self.seen, x.numel())
        return out


@pytest.mark.parametrize("window", [None, 16])
def test_hstu_attention_keeps_one_tile_of_scores(window: int | None) -> None:
    inputs, offsets, time = make((4096,), heads=1, dim=4)
    leaves = [x.requires_grad_() for x in inputs]
    with _Largest() as largest:
        out = on(hstu_attention, offsets, time, window=window, backend="portable")(*leaves)
        torch.autograd.grad(out.sum(), leaves)
    rows, tile = 4097 * 4, 128 * 1024 + 64  # all scores would be 16 million
    assert largest.seen <= (tile if window is None else rows)


@pytest.mark.parametrize("window", [None, 4])
def test_flop_counter_sees_useful_flops_only(window: int | None) -> None:
    lengths = (5, 0, 3, 70)
    inputs, offsets, time = make(lengths, dim=8)
    leaves = [x.requires_grad_() for x in inputs]
    with FlopCounterMode(display=False) as forward:
        out = on(hstu_attention, offsets, time, window=window)(*leaves)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out.sum(), leaves)
    reach = 10**9 if window is None else window
    pairs = sum(window_pairs(n, reach, causal=True) for n in lengths)
    assert forward.get_total_flops() == 4 * 2 * 8 * pairs
    assert backward.get_total_flops() == 10 * 2 * 8 * pairs
    moved = [x.detach().to("meta") for x in (*inputs[:3], offsets, time, *inputs[3:])]
    with FlopCounterMode(display=False) as average:
        hstu_attention(*moved, window=window)
    pairs = 4 * window_pairs(sum(lengths) // 4, reach, causal=True)
    assert average.get_total_flops() == 4 * 2 * 8 * pairs


def test_hstu_attention_opcheck() -> None:
    inputs, offsets, time = make((5, 0, 3, 70))
    rows, tables = inputs[:3], inputs[3:]
    leaves = [x.clone().requires_grad_() for x in inputs]
    settings = (2**62, 0.3, 0.1)
    torch.library.opcheck(hstu_attention_op, (*leaves[:3], offsets, time, *leaves[3:], *settings))
    arguments = (rows[0].clone(), *rows, offsets, time, *tables, *settings)
    torch.library.opcheck(hstu_attention_backward_op, arguments)


def test_hstu_attention_compiles_whole_and_exports() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, o: Tensor, time: Tensor, p: Tensor, t: Tensor) -> Tensor:
            return hstu_attention(x, x, x, o, time, p, t)

    (x, *_, p, t), offsets, time = make((5, 0, 3, 70))
    (other, *_), fewer, sooner = make((9, 0))
    args, small = (x, offsets, time, p, t), (other, fewer, sooner, p, t)
    rows = torch.export.Dim("rows")
    shapes = ({0: rows}, {0: torch.export.Dim("n", min=3)}, {0: rows}, None, None)
    exported = torch.export.export(Module(), args, dynamic_shapes=shapes).module()
    compiled = torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")
    for case in (args, small):
        assert torch.equal(exported(*case), Module()(*case))
        assert torch.equal(compiled(*case), Module()(*case))


X, ROWS, T = torch.zeros(4, 2, 6), torch.tensor([0, 1, 4]), torch.zeros(4)
TABLE = torch.zeros(3)
run = partial(hstu_attention, offsets=ROWS, time=T, position_bias=TABLE, time_bias=TABLE)
REFUSED: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: run(X[0], X, X), r"^q: expected \[L, H, D\], got shape \[2, 6\]$"),
    (lambda: run(X, X[:, :1], X[:, :1]), r"^k: shape \[4, 1, 6\] differs from q's \[4, 2, 6\]$"),
    (lambda: run(X, X, X.double()), r"^v: dtype torch.float64 differs from q's torch.float32$"),
    (lambda: run(X, X, X, offsets=ROWS + 1), r"^offsets: starts with 1, expected 0$"),
    (lambda: run(X, X, X, offsets=ROWS.float()), r"^offsets: expected int32 or int64"),
    (lambda: run(X, X, X, time=T[:3]), r"^time: expected \[4\], got shape \[3\]$"),
    (lambda: run(X, X, X, time=T.long()), r"^time: expected float32 or float64, got torch.int64$"),
    (lambda: run(X, X, X, time=T.to("meta")), r"^time: on meta, but q is on cpu$"),
    (
        lambda: run(X, X, X, time_bias=X),
        r"^time_bias: expected \[buckets\], got shape \[4, 2, 6\]$",
    ),
    (lambda: run(X, X, X, position_bias=TABLE[:0]), r"^position_bias: no buckets; one of zero"),
    (lambda: run(X, X, X, window=-1), r"^window: -1 is negative; 0 is a row alone$"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m[1:40] for _, m in REFUSED])
def test_shape_error_names_the_argument(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


@needs_native
def test_choice_says_why() -> None:
    assert choose("hstu_attention", device="cpu").backend == "native"
    assert choose("hstu_attention", device="cpu", dtype=F64) == (
        "portable",
        "the native library computes float32 and bfloat16 and the dtype is torch.float64",
    )
    with pytest.raises(BackendError, match=r"the dtype is torch\.float64; use 'portable'"):
        hstu_attention(*[X.double()] * 3, ROWS, T, TABLE, TABLE, backend="native")


@pytest.mark.parametrize("backend", BACKENDS)
def test_registered_operators_check_times_and_tables(backend: str) -> None:
    """They read memory by them."""
    none = TABLE[:0]
    cases = [
        (T, none, TABLE, "position_bias: no buckets"),
        (T, TABLE, none, "time_bias: no buckets"),
        (T.long(), TABLE, TABLE, "time: expected float32 or float64"),
        (T[:3], TABLE, TABLE, r"time: expected \[4\]"),
    ]
    for *inputs, message in cases:
        arguments = (X, X, X, ROWS, *inputs, 9, 1.0, 1.0, backend)
        with pytest.raises(ShapeError, match=f"^{message}"):
            hstu_attention_op(*arguments)
        with pytest.raises(ShapeError, match=f"^{message}"):
            hstu_attention_backward_op(X, *arguments)
