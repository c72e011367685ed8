"""What the operators refuse, in which words, and which backend they choose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kunlun.errors import BackendError, ShapeError
from kunlun.ops import (
    Choice,
    choose,
    gdpa,
    native,
    rotary,
    seed_attention,
    sum_kron,
    window_attention,
)
from tests.ops.helpers import needs_native

X = torch.zeros(4, 2, 6)
O = torch.tensor([0, 1, 4])  # noqa: E741


def g(q: Tensor = X, k: Tensor = X, v: Tensor = X, a: Tensor = O, b: Tensor = O, **kw) -> Tensor:
    return gdpa(q, k, v, a, b, **kw)


def w(q: Tensor = X, k: Tensor = X, v: Tensor = X, a: Tensor = O, window: int = 1, **kw) -> Tensor:
    return window_attention(q, k, v, a, window=window, **kw)


def s(q: Tensor = X, k: Tensor = X, v: Tensor = X, a: Tensor = O, **kw) -> Tensor:
    return seed_attention(q, k, v, a, **kw)


REFUSED: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: g(q=X[0]), r"^q: expected \[L, H, D\], got shape \[2, 6\]$"),
    (lambda: g(q=X.long()), r"^q: expected a floating-point dtype, got torch.int64$"),
    (
        lambda: g(X[:, :0], X[:, :0], X[:, :0]),
        r"^q: expected \[L, H, D\] with H at least 1, got shape \[4, 0, 6\]$",
    ),
    (
        lambda: g(X[..., :0], X[..., :0], X[..., :0]),
        r"^q: expected \[L, H, D\] with D at least 1, got shape \[4, 2, 0\]$",
    ),
    (
        lambda: g(k=X[:, :0], v=X[:, :0]),
        r"^k: expected \[L, H, D\] with H at least 1, got shape \[4, 0, 6\]$",
    ),
    (lambda: w(X[..., :0], X[..., :0], X[..., :0]), r"^q: .* with D at least 1, got shape "),
    (lambda: s(X[:, :0], X[:, :0], X[:, :0]), r"^seeds: .* with H at least 1, got shape "),
    (
        lambda: s(q=X[:0]),
        r"^seeds: expected \[S, H, D\] with S at least 1, got shape \[0, 2, 6\]$",
    ),
    (lambda: g(k=X[0]), r"^k: expected \[L, H, D\]"),
    (lambda: g(v=X[:3]), r"^v: shape \[3, 2, 6\] differs from k's \[4, 2, 6\]$"),
    (lambda: g(q=X[..., :5]), r"^k: width 6 differs from q's 5$"),
    (lambda: g(q=X[:, :1]), r"^k: 1 heads of q are no multiple of its 2 heads$"),
    (lambda: g(k=X.double()), r"^k: dtype torch.float64 differs from q's torch.float32$"),
    (lambda: g(v=X.double()), r"^v: dtype torch.float64 differs"),
    (lambda: g(k=X.to("meta")), r"^k: on meta, but q is on cpu$"),
    (lambda: g(a=O[None]), r"^q_offsets: expected \[n \+ 1\], got shape \[1, 3\]$"),
    (lambda: g(b=O.float()), r"^kv_offsets: expected int32 or int64, got torch.float32$"),
    (lambda: g(a=O.to("meta")), r"^q_offsets: on meta, but q is on cpu$"),
    (lambda: g(b=O.to("meta")), r"^kv_offsets: on meta, but k is on cpu$"),
    (lambda: w(a=O.to("meta")), r"^offsets: on meta, but q is on cpu$"),
    (lambda: s(a=O.to("meta")), r"^offsets: on meta, but k is on cpu$"),
    (lambda: g(b=O[1:]), r"^kv_offsets: 1 samples, but q_offsets has 2$"),
    (lambda: g(a=O + 1), r"^q_offsets: starts with 1, expected 0$"),
    (lambda: g(b=O + O), r"^kv_offsets: ends with 8, but there are 4 packed rows$"),
    (lambda: g(a=torch.tensor([0, 5, 4])), r"^q_offsets: decreases; expected running sums"),
    (lambda: g(activation="tanh"), r"^activation: 'tanh' is not one of raw, gelu, "),
    (lambda: g(activation=["relu"]), r"^activation: 1 names for 2 heads; give one a head$"),
    (lambda: w(k=X[:3], v=X[:3]), r"^k: 3 rows, but q has 4$"),
    (lambda: w(window=-1), r"^window: -1 is negative; 0 is a row alone$"),
    (lambda: w(a=O[:2]), r"^offsets: ends with 1, but there are 4 packed rows$"),
    (lambda: w(a=O[:0]), r"^offsets: expected \[n \+ 1\], got shape \[0\]$"),
    (lambda: s(q=X[0]), r"^seeds: expected \[S, H, D\], got shape \[2, 6\]$"),
    (lambda: s(k=X[:, :1], v=X[:, :1]), r"^k: 1 heads, but seeds has 2$"),
    (lambda: s(a=O - 1), r"^offsets: starts with -1, expected 0$"),
    (lambda: sum_kron(X[0], X, X), r"^x: expected \[n, S, D\], got shape \[2, 6\]$"),
    (lambda: sum_kron(X, X[:, :1], X), r"^z: mixes 1 rows, but x has 2$"),
    (lambda: sum_kron(X, X, X), r"^w: mixes 2 columns, but x has 6$"),
    (lambda: sum_kron(X, X, X[:3].mT), r"^w: 3 terms, but z has 4$"),
    (lambda: rotary(X[..., :5], X[:, 0, :2]), r"^x: width 5 is odd; rotation needs pairs$"),
    (
        lambda: rotary(X[..., :0], X[:, 0, :0]),
        r"^x: expected \[L, H, D\] with D at least 1, got shape \[4, 2, 0\]$",
    ),
    (lambda: rotary(X[:, :0], X[:, 0, :3]), r"^x: .* with H at least 1, got shape \[4, 0, 6\]$"),
    (lambda: rotary(X, X[:, 0, :3].to("meta")), r"^angle: on meta, but x is on cpu$"),
    (lambda: rotary(X, X[:, 0]), r"^angle: expected \[4, 3\], got shape \[4, 6\]$"),
]


@pytest.mark.parametrize("library", [True, False], ids=["native", "portable"])
@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m[1:40] for _, m in REFUSED])
def test_shape_error_names_the_argument(
    call: Callable[[], Tensor], message: str, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library:
        monkeypatch.setattr(native, "load", lambda: native.Loaded(None, "taken away"))
    with pytest.raises(ShapeError, match=message):
        call()


@needs_native
def test_registered_gdpa_refuses_other_than_one_activation_a_head() -> None:
    raw, rest = torch.ops.kunlun, (O, O, "gelu", 1.0, 1.0, "native")
    for call in (lambda: raw.gdpa(X, X, X, *rest), lambda: raw.gdpa_backward(X, X, X, X, *rest)):
        with pytest.raises(ShapeError, match=r"^activation: 1 names for 2 heads; give one a head$"):
            call()


@needs_native
@pytest.mark.parametrize("shape", [(4, 0, 6), (4, 2, 0)], ids=str)
def test_registered_operators_refuse_no_heads_and_no_channels(shape: tuple[int, ...]) -> None:
    x, raw, table = torch.zeros(shape), torch.ops.kunlun, torch.zeros(3)
    gdpa_rest = (O, O, "gelu", 1.0, 1.0, "native")
    hstu_rest = (O, torch.zeros(4), table, table, 9, 1.0, 1.0, "native")
    calls = [
        lambda: raw.gdpa(x, x, x, *gdpa_rest),
        lambda: raw.gdpa_backward(x, x, x, x, *gdpa_rest),
        lambda: raw.hstu_attention(x, x, x, *hstu_rest),
        lambda: raw.hstu_attention_backward(x, x, x, x, *hstu_rest),
    ]
    for call in calls:
        with pytest.raises(ShapeError, match=r"^q: expected \[L, H, D\] with "):
            call()


@needs_native
@pytest.mark.parametrize("call", [g, w, s], ids=["gdpa", "window_attention", "seed_attention"])
def test_forced_backend_that_cannot_run_says_why(call: Callable[..., Tensor]) -> None:
    call(backend="portable")
    call(backend="native")
    half = X.half()
    with pytest.raises(BackendError, match=r"^backend: the native library computes float32 and "):
        call(half, half, half, backend="native")
    with pytest.raises(BackendError, match="need CUDA and the device is cpu; use 'portable'"):
        call(backend="triton")
    with pytest.raises(BackendError, match="'cuda' is not one of portable, native, triton"):
        call(backend="cuda")


@needs_native
def test_choose_returns_its_reason() -> None:
    on_cpu = choose("gdpa", device="cpu", dtype=torch.float32)
    assert on_cpu.backend == "native"
    assert on_cpu.reason in [f"compiled for {isa}" for isa in native.ISAS]
    assert choose("gdpa", device="cpu", dtype=torch.float64) == Choice(
        "portable",
        "the native library computes float32 and bfloat16 and the dtype is torch.float64",
    )
    assert choose("sum_kron", device="cpu") == Choice(
        "portable", "sum_kron is torch's matrix products; the library has none of its own"
    )
    assert choose("gdpa", device="cpu", backend="portable").reason == "asked for"
    assert choose("gdpa", device="cpu", backend="native") == Choice("native", "asked for")
    with pytest.raises(BackendError, match="native library runs on cpu and the device is cuda"):
        choose("gdpa", device="cuda", backend="native")
    with pytest.raises(BackendError, match="operator: 'softmax' is not one of gdpa, "):
        choose("softmax", device="cpu")


def test_without_the_library_everything_runs_portably(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the native library is not built; python -m kunlun.ops.native.build builds it"
    monkeypatch.setattr(native, "load", lambda: native.Loaded(None, why))
    assert choose("gdpa", device="cpu") == Choice("portable", why)
    assert torch.equal(g(), g(backend="portable"))
    with pytest.raises(BackendError, match=r"^backend: the native library is not built; "):
        g(backend="native")
