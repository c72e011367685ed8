"""Calls of the library's HSTU attention."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from kunlun.ops.native.call import addresses, call, check, int64, rows


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    window: int,
    scale: float,
    out_scale: float,
) -> Tensor:
    """See kunlun.ops.hstu_attention."""
    out = q.new_empty(q.shape)
    tensors = [q, k, v, out, None, None, None]
    tables = [position_bias, time_bias]
    _call("hstu_forward", tensors, offsets, time, tables, None, window, scale, out_scale)
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    window: int,
    scale: float,
    out_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dposition_bias, dtime_bias)."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    tables = [position_bias, time_bias]
    sums = [torch.empty(x.shape, dtype=torch.float64) for x in tables]
    tensors = [q, k, v, grad, dq, dk, dv]
    _call("hstu_backward", tensors, offsets, time, tables, sums, window, scale, out_scale)
    d_position, d_time = (x.to(table.dtype) for x, table in zip(sums, tables, strict=True))
    return dq, dk, dv, d_position, d_time


_HSTU = struct.Struct("=21q6q10q2d")


def _call(
    name: str,
    tensors: Sequence[Tensor | None],
    offsets: Tensor,
    time: Tensor,
    tables: list[Tensor],
    sums: list[Tensor] | None,
    window: int,
    scale: float,
    out_scale: float,
) -> None:
    strided = [None if x is None else rows(x) for x in tensors]
    q = strided[0]
    assert q is not None
    starts, time = int64(offsets), time.contiguous()
    values = [x.to(torch.float32).contiguous() for x in tables]
    packed = _HSTU.pack(
        *addresses(strided),
        *(time.data_ptr(), *(x.data_ptr() for x in values)),
        *((0, 0) if sums is None else (x.data_ptr() for x in sums)),
        *(starts.data_ptr(), len(starts) - 1),
        *(q.shape[0], q.shape[1], q.shape[2]),
        *(q.dtype == torch.bfloat16, torch.get_num_threads()),
        *(len(values[0]), len(values[1]), time.dtype == torch.float64, min(window, 2**40)),
        *(scale, out_scale),
    )
    check(call(name, packed), [("offsets", offsets, q.shape[0])])
