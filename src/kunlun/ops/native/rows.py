"""Calls of the library's row-wise parts: norms, rotation, tanh-GELU, rows of tables."""

from __future__ import annotations

import struct
from array import array

import torch
from torch import Tensor

from kunlun.errors import BackendError
from kunlun.ops.native.call import addresses, call, check, rows

_NORM = struct.Struct("=19qd")
_ROTARY = struct.Struct("=15q")
_EACH = struct.Struct("=6q")
_ADAGRAD = struct.Struct("=8q3d")
_BAD_ROWS = 4  # of Status in library.h
_SHARE = 1 << 13  # gradients that are worth a thread of their own


def norm_forward(
    x: Tensor, centered: bool, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x [rows, width] -> (result in `dtype`, rstd float32 [rows]); see kunlun.ops.layer_norm."""
    out = x.new_empty(x.shape, dtype=dtype)
    rstd = x.new_empty(x.shape[:1], dtype=torch.float32)
    _norm("norm_forward", [x, None, None, out], rstd, centered, eps)
    return out, rstd


def norm_backward(
    grad: Tensor, out: Tensor, rstd: Tensor, centered: bool, dtype: torch.dtype
) -> Tensor:
    """dx [rows, width] in `dtype`."""
    dx = out.new_empty(out.shape, dtype=dtype)
    _norm("norm_backward", [dx, out, None, grad], rstd, centered, 0.0)
    return dx


def add_norm_forward(s: Tensor, u: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(result [rows, width] in s's dtype, rstd float32 [rows]); see kunlun.ops.add_rms_norm."""
    out, rstd = s.new_empty(s.shape), s.new_empty(s.shape[:1], dtype=torch.float32)
    _norm("add_norm_forward", [s, u, y, out], rstd, False, eps)
    return out, rstd


def add_norm_backward(grad: Tensor, u: Tensor, y: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of u, and of y [rows, width]."""
    dy = u.new_empty(u.shape)
    _norm("add_norm_backward", [grad, u, y, dy], rstd, False, 0.0)
    return dy


def _norm(
    name: str, tensors: list[Tensor | None], rstd: Tensor, centered: bool, eps: float
) -> None:
    strided, rstd = [None if x is None else rows(x) for x in tensors], rstd.contiguous()
    x, out = tensors[0], tensors[3] if tensors[1] is None else tensors[1]
    assert x is not None
    assert out is not None
    packed = _NORM.pack(
        *addresses(strided),
        *(rstd.data_ptr(), x.shape[0], x.shape[1], centered),
        *(x.dtype == torch.bfloat16, out.dtype == torch.bfloat16, torch.get_num_threads(), eps),
    )
    check(call(name, packed), [])


def rotary_forward(x: Tensor, angle: Tensor, turned: int) -> list[Tensor]:
    """x [L, P, H, D] -> P tensors [L, H, D]; see kunlun.ops.rotary_split."""
    outs = [x.new_empty((x.shape[0], *x.shape[2:])) for _ in range(x.shape[1])]
    x = x if x.stride(3) == 1 else x.contiguous()
    _rotary("rotary_forward", x, outs, angle, turned, None)
    return outs


def rotary_backward(
    grads: list[Tensor], outs: list[Tensor], angle: Tensor, by_angle: bool
) -> tuple[Tensor, Tensor]:
    """(dx [L, P, H, D], d angle [L, D/2], empty unless `by_angle`); outs: the turned results."""
    length, heads, width = grads[0].shape
    dx = grads[0].new_empty((length, len(grads), heads, width))
    d_angle = angle.new_empty(angle.shape if by_angle else (0,), dtype=torch.float32)
    _rotary("rotary_backward", dx, [*grads, *outs], angle, len(outs), d_angle if by_angle else None)
    return dx, d_angle.to(angle.dtype)


def _rotary(
    name: str,
    x: Tensor,
    parts: list[Tensor],
    angle: Tensor,
    turned: int,
    d_angle: Tensor | None,
) -> None:
    strided = [rows(part) for part in parts]
    places = array("q", addresses(list(strided)))
    angle = angle.to(torch.float32)
    angle = angle if angle.stride(1) == 1 else angle.contiguous()
    packed = _ROTARY.pack(
        *(x.data_ptr(), x.stride(0), x.stride(2), x.stride(1), places.buffer_info()[0]),
        *(angle.data_ptr(), angle.stride(0), 0 if d_angle is None else d_angle.data_ptr()),
        *(x.shape[0], x.shape[1], turned, x.shape[2], x.shape[3]),
        *(x.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    check(call(name, packed), [])


def gelu_forward(x: Tensor) -> Tensor:
    """Contiguous, of any shape; see kunlun.ops.gelu_approx."""
    return _gelu(x, None)


def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """dx, contiguous."""
    return _gelu(x, grad)


def _gelu(x: Tensor, grad: Tensor | None) -> Tensor:
    out, x = x.new_empty(x.shape), x.contiguous()
    grad = None if grad is None else grad.contiguous()
    packed = _EACH.pack(
        *(x.data_ptr(), 0 if grad is None else grad.data_ptr(), out.data_ptr(), x.numel()),
        *(x.dtype == torch.bfloat16, torch.get_num_threads()),
    )
    check(call("gelu", packed), [])
    return out


def adagrad(
    weight: Tensor,
    total: Tensor,
    row: Tensor,
    grad: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
) -> bool:
    """In place, float32, weight and total contiguous; see kunlun.ops.row_wise_adagrad_. False: a
    row outside of the table, nothing changed."""
    row, grad = row.contiguous(), grad.contiguous()
    items = max(1, min(torch.get_num_threads(), len(row) // _SHARE))
    packed = _ADAGRAD.pack(
        *(weight.data_ptr(), total.data_ptr(), row.data_ptr(), grad.data_ptr()),
        *(len(row), weight.shape[1], weight.shape[0], items),
        *(lr, eps, weight_decay),
    )
    status = call("adagrad", packed)
    if status == _BAD_ROWS:
        return False
    if status:
        raise BackendError("native: out of memory for the rows of a batch; use 'portable'")
    # as torch's own functions: whoever kept a table for a backward must not get another one
    torch.autograd.graph.increment_version((weight, total))
    return True
