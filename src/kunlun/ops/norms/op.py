"""Registration with torch: schema, shapes for tracing, gradient. Element-wise: no FLOPs.

`backend`: "" lets choose decide. A program that was traced where the native library is may run
where it is not, so every operator can do without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kunlun.ops.dispatch import runs_on
from kunlun.ops.native import rows
from kunlun.ops.norms import portable
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake
from kunlun.ops.tiles import compute_dtype


@operator
def row_norm_op(
    x: Tensor, centered: bool, dtype: torch.dtype, backend: str = ""
) -> tuple[Tensor, Tensor]:
    """layer_norm (`centered`) or rms_norm of x [rows, D] in `dtype`, and 1 / rms float32 [rows]."""
    if runs_on("layer_norm" if centered else "rms_norm", x, backend) == "native":
        return rows.norm_forward(x, centered, portable.EPS, dtype)
    out, rstd = portable.forward(x, centered)
    return out.to(dtype), rstd.float()


@operator
def row_norm_backward_op(
    grad: Tensor,
    out: Tensor,
    rstd: Tensor,
    centered: bool,
    dtype: torch.dtype,
    backend: str = "",
) -> Tensor:
    """dx in `dtype`."""
    if runs_on("layer_norm" if centered else "rms_norm", out, backend) == "native":
        return rows.norm_backward(grad, out, rstd, centered, dtype)
    return portable.backward(grad, out, rstd, centered).to(dtype)


@operator
def add_rms_norm_op(s: Tensor, u: Tensor, y: Tensor, backend: str = "") -> tuple[Tensor, Tensor]:
    """s + rms_norm(u + y) [rows, D], and 1 / rms float32 [rows]."""
    if runs_on("add_rms_norm", s, backend) == "native":
        return rows.add_norm_forward(s, u, y, portable.EPS)
    normed, rstd = portable.forward(u.to(compute_dtype(u.dtype)) + y, centered=False)
    return (s + normed).to(s.dtype), rstd.float()


@operator
def add_rms_norm_backward_op(
    grad: Tensor, u: Tensor, y: Tensor, rstd: Tensor, backend: str = ""
) -> Tensor:
    """The gradient of u, which is that of y."""
    if runs_on("add_rms_norm", u, backend) == "native":
        return rows.add_norm_backward(grad, u, y, rstd)
    normed = (u.to(rstd.dtype) + y) * rstd[:, None]
    return portable.backward(grad, normed, rstd, centered=False).to(u.dtype)


@register_fake(row_norm_op)
def _(x: Tensor, centered: bool, dtype: torch.dtype, backend: str = "") -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:1], dtype=torch.float32)


@register_fake(row_norm_backward_op)
def _(
    grad: Tensor, out: Tensor, rstd: Tensor, centered: bool, dtype: torch.dtype, *_: Any
) -> Tensor:
    return out.new_empty(out.shape, dtype=dtype)


@register_fake(add_rms_norm_op)
def _(s: Tensor, u: Tensor, y: Tensor, backend: str = "") -> tuple[Tensor, Tensor]:
    return s.new_empty(s.shape), s.new_empty(s.shape[:1], dtype=torch.float32)


@register_fake(add_rms_norm_backward_op)
def _(grad: Tensor, u: Tensor, y: Tensor, rstd: Tensor, backend: str = "") -> Tensor:
    return u.new_empty(u.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.centered, _, ctx.backend = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, saved: Saved, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    settings = ctx.centered, ctx.dtype, ctx.backend
    return row_norm_backward_op(grad, *saved, *settings), None, None, None


register_autograd(row_norm_op, _differentiate, save=_save)


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, u, y, ctx.backend = inputs
    ctx.save_for_backward(u, y, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_sum(ctx: Any, saved: Saved, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    dy = add_rms_norm_backward_op(grad, *saved, ctx.backend)
    return grad, dy, dy, None


register_autograd(add_rms_norm_op, _differentiate_sum, save=_save_sum)
