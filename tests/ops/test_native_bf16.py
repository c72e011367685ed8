"""Native gdpa of bfloat16 on every level of the instruction set: plain vectors, vdpbf16ps, AMX."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kunlun.ops import gdpa, native
from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.gdpa.reference import gdpa_reference
from kunlun.ops.native import build
from tests.ops.helpers import bits, gradients, needs_native, normal, offsets_of, use

pytestmark = needs_native

BF16 = torch.bfloat16
EPS = torch.finfo(BF16).eps
# On one thread an item takes five key heads of few keys, three of 90 in a backward or 300 in a
# forward, one of 300 in a backward.
UNEVEN = ((40, 0, 33, 7), (20, 3, 90, 300), 10, 5, 128)
SHAPES = [  # rows, keys, H, Hkv, D: whole tiles, and every kind of rest
    ((64, 128), (32, 64), 2, 2, 64),
    ((5,), (7,), 1, 1, 8),
    ((40, 0, 1, 33), (33, 5, 64, 0), 4, 2, 32),
    ((300, 7), (300, 129), 2, 1, 40),
    ((31, 100), (17, 65), 2, 2, 128),
    ((50, 17), (40, 16), 2, 2, 3),
    UNEVEN,
]


@pytest.fixture(params=native.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every level that this machine has, forced."""
    use(request.param, monkeypatch)
    return request.param


def make(
    rows: tuple[int, ...], keys: tuple[int, ...], heads: int, kv_heads: int, dim: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    q = normal(sum(rows), heads, dim, dtype=BF16, seed=1)
    k, v = (normal(sum(keys), kv_heads, dim, dtype=BF16, seed=s) for s in (2, 3))
    return [q, k, v], {"q_offsets": offsets_of(rows), "kv_offsets": offsets_of(keys)}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"L{s[0]}-K{s[1]}-D{s[4]}")
@pytest.mark.parametrize("activation", ["gelu", "gelu_approx", "silu", "relu_square"])
def test_errors_are_at_most_twice_those_of_torch(isa: str, shape: tuple, activation: str) -> None:
    inputs, offsets = make(*shape)
    kwargs = {**offsets, "activation": activation, "scale": 0.3, "out_scale": 0.5}
    ours = gradients(partial(gdpa, backend="native", **kwargs), inputs)
    torchs = gradients(partial(gdpa, backend="portable", **kwargs), inputs)
    truth = gradients(partial(gdpa_reference, **kwargs), [x.double() for x in inputs])
    for a, b, want in zip(ours, torchs, truth, strict=True):
        assert a.shape == want.shape
        ours_off, torchs_off = (float((x - want).norm()) for x in (a, b))
        assert ours_off <= 2 * torchs_off
        assert float((a - want).abs().max()) <= 2 * float((b - want).abs().max()) + (
            0.25 * EPS * float(want.abs().max())
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_right_to_a_rounding(isa: str, activation: str) -> None:
    # One key of one channel: the result is the activation, the gradient of q its derivative.
    rest = torch.tensor([0.0, -0.0, 3.0, -3.0, 1e4, -1e4, 60.0, 1e-20])
    x = torch.cat([torch.linspace(-18, 18, 9001), rest]).to(BF16)
    one = torch.ones(1, 1, 1, dtype=BF16)
    run = partial(
        gdpa,
        q_offsets=offsets_of((len(x),)),
        kv_offsets=offsets_of((1,)),
        activation=activation,
        backend="native",
    )
    q = x[:, None, None].clone().requires_grad_()
    got = run(q, one, one)
    slope = torch.autograd.grad(got, q, torch.ones_like(got))[0].flatten()
    exact = x.double().requires_grad_()
    want = ACTIVATIONS[activation].formula(exact)
    want_slope = torch.autograd.grad(want.sum(), exact)[0]
    # The weight is rounded, and 1e-5 is what the tables of pieces.h promise.
    assert bool(((got.flatten().double() - want).abs() <= EPS * want.abs() + 1e-5).all())
    assert bool(((slope.double() - want_slope).abs() <= EPS * want_slope.abs() + 3e-5).all())
    assert not got[x == 0].any()


@pytest.mark.parametrize(
    "shape",
    [((5, 0, 200, 33, 64, 1), (40, 3, 130, 64, 0, 7), 4, 2, 24), UNEVEN],
    ids=["", "uneven"],
)
def test_runs_are_bit_equal_whatever_the_threads(isa: str, shape: tuple) -> None:
    inputs, offsets = make(*shape)
    run = partial(gdpa, backend="native", **offsets)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = gradients(run, inputs)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for a, b in zip(alone, gradients(run, inputs), strict=True):
                assert torch.equal(bits(a), bits(b))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 7.0], ids=str)
@pytest.mark.parametrize(("rows", "keys", "dim"), [(18, 9, 16), (130, 33, 32), (31, 64, 64)])
def test_a_sample_does_not_see_its_neighbours(
    isa: str, poison: float, rows: int, keys: int, dim: int
) -> None:
    inputs, alone = make((rows,), (keys,), 2, 2, dim)
    around = {
        "q_offsets": offsets_of((3, rows, 40)),
        "kv_offsets": offsets_of((5, keys, 50)),
    }
    crowd = []
    for x, (before, after) in zip(inputs, [(3, 40), (5, 50), (5, 50)], strict=True):
        parts = [torch.full((n, *x.shape[1:]), poison, dtype=BF16) for n in (before, after)]
        crowd.append(torch.cat([parts[0], x, parts[1]]))
    outer = normal(rows, 2, dim, dtype=BF16, seed=9)

    def run(tensors: list[Tensor], offsets: dict[str, Tensor], start: int) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = gdpa(*leaves, **offsets, backend="native")
        grad = torch.full_like(out, poison)
        grad[start : start + rows] = outer
        starts = [start, *((5, 5) if start else (0, 0))]
        lengths = [rows, keys, keys]
        found = torch.autograd.grad(out, leaves, grad)
        own = [g[s : s + n] for g, s, n in zip(found, starts, lengths, strict=True)]
        return [out.detach()[start : start + rows], *own]

    for a, b in zip(run(inputs, alone, 0), run(crowd, around, 3), strict=True):
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("rows", [5, 33])
def test_padding_never_meets_what_is_not_finite(
    isa: str, value: float, which: int, rows: int
) -> None:
    # Rows and keys in odd numbers: their zero padding times an infinity would be NaN.
    inputs, offsets = make((rows,), (7,), 1, 1, 24)
    inputs[which][0, 0, 0] = value
    run = partial(gdpa, backend="native", activation="relu", **offsets)
    for a, b in zip(
        gradients(run, inputs), gradients(run, [x.float() for x in inputs]), strict=True
    ):
        assert torch.equal(a.isfinite(), b.isfinite())


def test_padded_keys_never_meet_an_infinite_query(isa: str) -> None:
    # All scores are minus infinity, so weights and slopes are 0; those of padded keys are NaN.
    (q, k, v), offsets = make((5,), (7,), 1, 1, 24)
    q[0, 0, 0], k[..., 0] = float("inf"), -1
    run = partial(gdpa, backend="native", **offsets)
    assert not gradients(partial(run, activation="relu"), (q, k, v))[0][0].any()
    assert bool(gradients(partial(run, activation="silu"), (q, k, v))[1].isfinite().all())


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page by its C library")
def test_nothing_behind_a_tensor_is_read() -> None:
    code = """
import ctypes, mmap
import torch
from kunlun.ops import gdpa, native
libc, size = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * size)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert libc.mprotect(ctypes.c_void_p(start + size), size, 0) == 0
library = native.load().library
for level in range(library.isa + 1):
    native.load = lambda: native.Loaded(library._replace(isa=level), "")
    for rows, width in [(5, 32), (17, 32), (3, 40), (1, 8)]:
        count = rows * width
        x = torch.frombuffer(memory, dtype=torch.bfloat16, count=count, offset=size - 2 * count)
        x = x.view(rows, 1, width).requires_grad_()
        offsets = torch.tensor([0, rows])
        gdpa(x, x, x, offsets, offsets, backend="native").sum().backward()
print("read")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.strip() == b"read", done.stderr.decode()


def test_strided_tensors_are_read_where_they_are(isa: str) -> None:
    packed = normal(50, 2, 3, 32, dtype=BF16).transpose(1, 2)  # [L, 3, H, D] with foreign strides
    q, k, v = packed.unbind(1)
    run = partial(gdpa, q_offsets=offsets_of((17, 33)), kv_offsets=offsets_of((17, 33)))
    got = run(q, k, v, backend="native")
    want = run(*(x.contiguous() for x in (q, k, v)), backend="native")
    assert torch.equal(got, want)


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux grants AMX")
def test_refused_tiles_are_done_without() -> None:
    # Linux refuses AMX to a process with a signal stack too small for its registers.
    code = """
import ctypes
import torch
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
stack = Stack(ctypes.addressof(memory), 0, len(memory))
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
from kunlun.ops import gdpa, native
x, offsets = torch.randn(20, 2, 32).bfloat16(), torch.tensor([0, 20])
assert gdpa(x, x, x, offsets, offsets, backend="native").isfinite().all()
print(native.load().reason)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() in [f"compiled for {isa}" for isa in native.ISAS if isa != "amx"]


def test_build_asks_compiler_and_assembler_what_they_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = build.compiler()
    monkeypatch.setitem(build.X86_BF16, "amx", ())
    monkeypatch.setitem(build._PROBES, "amx", "nop")
    assert build._knows(command, "amx", tmp_path)
    monkeypatch.setitem(build._PROBES, "amx", "no_such_instruction")  # the assembler's part
    assert not build._knows(command, "amx", tmp_path)
    monkeypatch.setitem(build._PROBES, "amx", "nop")
    monkeypatch.setitem(build.X86_BF16, "amx", ("-mno-such-instructions",))
    assert not build._knows(command, "amx", tmp_path)
    assert not build._knows(["no-such-compiler"], "amx", tmp_path)


@pytest.mark.slow
def test_build_leaves_out_what_the_compiler_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old-compiler"
    real = shlex.join(build.compiler())
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mamx*|*avx512bf16*) exit 1;; esac\n{real} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    made = tmp_path / "made.so"
    build.build(made)
    code = f"import ctypes; print(ctypes.CDLL({str(made)!r}).kunlun_best_isa())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= native.ISAS.index("avx512")
