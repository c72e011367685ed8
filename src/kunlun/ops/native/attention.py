"""Calls of the library's sample-wise parts: gdpa, window and seed attention."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_rows
from kunlun.ops.native.call import addresses, call, check, int64, rows

# In the order of activations.h; names of the same function share a code.
_ORDER = ["raw", "gelu", "gelu_approx", "silu", "relu", "relu_square", "leaky_relu", "hardswish"]
_CODES = {name: code for code, name in enumerate(_ORDER)}
_CODES |= {"fast_gelu": _CODES["gelu_approx"], "fast_silu": _CODES["silu"]}


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
    strided = [None if x is None else rows(x) for x in tensors]
    q, k = strided[:2]
    assert q is not None
    assert k is not None
    check_rows("q", q)  # the library divides by heads and channels
    check_rows("k", k)
    starts, kv_starts = int64(q_offsets), int64(kv_offsets)
    codes = _codes(activation)
    if len(codes) != q.shape[1]:  # each head reads its own
        raise ShapeError(f"activation: {len(codes)} names for {q.shape[1]} heads; give one a head")
    packed = _GDPA.pack(
        *addresses(strided),
        *(starts.data_ptr(), kv_starts.data_ptr(), codes.data_ptr(), len(starts) - 1),
        *(q.shape[0], k.shape[0], q.shape[1], k.shape[1], q.shape[2]),
        *(q.dtype == torch.bfloat16, torch.get_num_threads()),
        *(scale, out_scale),
    )
    check(
        call(f"gdpa_{way}", packed),
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
    flat = [x.flatten(0, 1) for x in (out, grad)]
    tensors = [seeds, k, v, *flat, d_seeds, dk, dv]
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
    strided = [None if x is None else rows(x) for x in tensors]
    q, k = strided[:2]
    assert q is not None
    assert k is not None
    starts, lse = int64(offsets), lse.contiguous()
    packed = _SOFTMAX.pack(
        *addresses(strided),
        *(lse.data_ptr(), starts.data_ptr(), len(starts) - 1),
        *(k.shape[0], q.shape[1], k.shape[1], q.shape[2]),
        *(q.dtype == torch.bfloat16, torch.get_num_threads()),
        *(seeds, min(window, 2**40), causal, scale),
    )
    check(call(name, packed), [("offsets", offsets, k.shape[0])])


@lru_cache(maxsize=64)
def _codes(activation: str) -> Tensor:
    return torch.tensor([_CODES[name] for name in activation.split(",")], dtype=torch.int8)
