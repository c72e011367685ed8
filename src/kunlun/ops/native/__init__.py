"""The C++ library behind the operators on CPU: loading it, and calling it with tensors.

One file an operator (gdpa.h, softmax.h with window_attention.h and seed_attention.h; norm.h,
rotary.h and gelu.h, called from native/rows.py), over small matrix products (product.h) and vector
functions (vector.h), compiled once an instruction set (kernels.cpp) and chosen at run time
(library.cpp). Nothing in it knows torch: it gets addresses, strides and torch's number of threads.
Results are computed in float32, bit-equal whatever the neighbours of a sample and the number of
threads. Where the machine multiplies bfloat16 itself (vdpbf16ps, AMX tiles), gdpa of bfloat16 does
(gdpa_bf16.h over product_bf16.h and pieces.h): it sums in float32, and rounds activated scores to
bfloat16 for the products that follow.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kunlun.errors import BackendError
from kunlun.ops.checks import read_offsets

DTYPES = (torch.float32, torch.bfloat16)
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
OPERATORS = (
    *("gdpa", "window_attention", "seed_attention", "rotary"),
    *("layer_norm", "rms_norm", "add_rms_norm", "gelu_approx"),
)

# In the order of activations.h; names of the same function share a code.
_ORDER = ["raw", "gelu", "gelu_approx", "silu", "relu", "relu_square", "leaky_relu", "hardswish"]
_CODES = {name: code for code, name in enumerate(_ORDER)}
_CODES |= {"fast_gelu": _CODES["gelu_approx"], "fast_silu": _CODES["silu"]}
_PARTS = ("gdpa", "window", "seed", "norm", "add_norm", "rotary")
_FUNCTIONS = [f"{part}_{way}" for part in _PARTS for way in ("forward", "backward")]
_FUNCTIONS.append("gelu")


class Library(NamedTuple):
    """The loaded functions, and the best instruction set of this machine (index into ISAS)."""

    call: dict[str, Callable[[int, bytes], int]]
    isa: int


class Loaded(NamedTuple):
    """The library, or None and why."""

    library: Library | None
    reason: str


@lru_cache(maxsize=1)
def load() -> Loaded:
    """Loads the library once a process."""
    from kunlun.ops.native.build import LIBRARY, stale  # not above: it is run as a module, too

    if stale():
        state = "built from other sources" if LIBRARY.exists() else "not built"
        why = f"the native library is {state}; python -m kunlun.ops.native.build builds it"
        return Loaded(None, why)
    try:
        handle = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return Loaded(None, f"the native library does not load: {error}")
    # Torch's own OpenMP, so that there is one set of threads; without it we run on one.
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    handle.kunlun_set_parallel(ctypes.cast(parallel, ctypes.c_void_p) if parallel else None)
    call = {}
    for name in _FUNCTIONS:
        function = getattr(handle, f"kunlun_{name}")
        function.argtypes = [ctypes.c_int, ctypes.c_char_p]
        call[name] = function
    isa: int = handle.kunlun_best_isa()
    return Loaded(Library(call, isa), f"compiled for {ISAS[isa]}")


def why_not(operator: str, device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why the library cannot run this; None if it can. A dtype of None means float32."""
    if device.type != "cpu":
        return f"the native library runs on cpu and the device is {device.type}"
    if operator in ("sum_kron", "mix_rows"):
        return f"{operator} is torch's matrix products, which the library's do not beat"
    if operator not in OPERATORS:
        return f"this release has no native {operator}"
    if dtype is not None and dtype not in DTYPES:
        return f"the native library computes float32 and bfloat16 and the dtype is {dtype}"
    loaded, reason = state()
    return None if loaded else reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def state() -> tuple[bool, str]:
    """Whether the library is loaded, and which or why not.

    torch.compile takes the answer and does not trace how it is found.
    """
    library, reason = load()
    return library is not None, reason


def gdpa_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    activation: str,
    scale: float,
    out_scale: float,
) -> Tensor:
    """See kunlun.ops.gdpa; activation as the registered operator takes it."""
    out = q.new_empty(q.shape)
    tensors = [q, k, v, out, None, None, None]
    _gdpa("forward", tensors, q_offsets, kv_offsets, activation, scale, out_scale)
    return out


def gdpa_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    activation: str,
    scale: float,
    out_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)."""
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    tensors = [q, k, v, grad, dq, dk, dv]
    _gdpa("backward", tensors, q_offsets, kv_offsets, activation, scale, out_scale)
    return dq, dk, dv


_GDPA = struct.Struct("=21q3q8q2d")


def _gdpa(
    way: str,
    tensors: Sequence[Tensor | None],
    q_offsets: Tensor,
    kv_offsets: Tensor,
    activation: str,
    scale: float,
    out_scale: float,
) -> None:
    rows = [None if x is None else _rows(x) for x in tensors]
    q, k = rows[:2]
    assert q is not None
    assert k is not None
    starts, kv_starts = _int64(q_offsets), _int64(kv_offsets)
    codes = _codes(activation)
    packed = _GDPA.pack(
        *_addresses(rows),
        *(starts.data_ptr(), kv_starts.data_ptr(), codes.data_ptr(), len(starts) - 1),
        *(q.shape[0], k.shape[0], q.shape[1], k.shape[1], q.shape[2]),
        *(q.dtype == torch.bfloat16, torch.get_num_threads()),
        *(scale, out_scale),
    )
    _check(
        _call(f"gdpa_{way}", packed),
        [("q_offsets", q_offsets, q.shape[0]), ("kv_offsets", kv_offsets, k.shape[0])],
    )


def window_forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """(result, log2-sum-exp2 [L, H]); see kunlun.ops.window_attention."""
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
    tensors = [q, k, v, out, None, None, None, None]
    _softmax("window_forward", tensors, lse, offsets, 0, window, causal, scale)
    return out, lse


def window_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    window: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)."""
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    tensors = [q, k, v, out, grad, dq, dk, dv]
    _softmax("window_backward", tensors, lse, offsets, 0, window, causal, scale)
    return dq, dk, dv


def seed_forward(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(result [n, S, H, D], log2-sum-exp2 [n, S, H]); see kunlun.ops.seed_attention."""
    n, (s, heads, width) = len(offsets) - 1, seeds.shape
    out, lse = k.new_empty((n, s, heads, width)), k.new_empty((n, s, heads), dtype=torch.float32)
    tensors = [seeds, k, v, out.view(n * s, heads, width), None, None, None, None]
    _softmax("seed_forward", tensors, lse, offsets, s, 0, False, scale)
    return out, lse


def seed_backward(
    grad: Tensor,
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d seeds, dk, dv)."""
    d_seeds, dk, dv = (x.new_empty(x.shape) for x in (seeds, k, v))
    rows = [x.flatten(0, 1) for x in (out, grad)]
    tensors = [seeds, k, v, *rows, d_seeds, dk, dv]
    _softmax("seed_backward", tensors, lse, offsets, len(seeds), 0, False, scale)
    return d_seeds, dk, dv


_SOFTMAX = struct.Struct("=24q2q10qd")


def _softmax(
    name: str,
    tensors: Sequence[Tensor | None],
    lse: Tensor,
    offsets: Tensor,
    seeds: int,
    window: int,
    causal: bool,
    scale: float,
) -> None:
    rows = [None if x is None else _rows(x) for x in tensors]
    q, k = rows[:2]
    assert q is not None
    assert k is not None
    starts, lse = _int64(offsets), lse.contiguous()
    packed = _SOFTMAX.pack(
        *_addresses(rows),
        *(lse.data_ptr(), starts.data_ptr(), len(starts) - 1),
        *(k.shape[0], q.shape[1], k.shape[1], q.shape[2]),
        *(q.dtype == torch.bfloat16, torch.get_num_threads()),
        *(seeds, min(window, 2**40), causal, scale),
    )
    _check(_call(name, packed), [("offsets", offsets, k.shape[0])])


def _call(name: str, packed: bytes) -> int:
    library = load().library
    assert library is not None
    return library.call[name](library.isa, packed)


def _check(status: int, offsets: list[tuple[str, Tensor, int]]) -> None:
    if status == 0:
        return
    for name, values, rows in offsets:
        read_offsets(name, values, rows)  # says what is wrong with them
    raise BackendError("native: out of memory for a sample; use 'portable'")


def _rows(x: Tensor) -> Tensor:
    """[rows, heads, width] with channels side by side."""
    return x if x.stride(2) == 1 else x.contiguous()


def _addresses(tensors: list[Tensor | None]) -> list[int]:
    flat = []
    for x in tensors:
        flat += [0, 0, 0] if x is None else [x.data_ptr(), x.stride(0), x.stride(1)]
    return flat


def _int64(offsets: Tensor) -> Tensor:
    return offsets.to(torch.int64).contiguous()


@lru_cache(maxsize=64)
def _codes(activation: str) -> Tensor:
    return torch.tensor([_CODES[name] for name in activation.split(",")], dtype=torch.int8)
