"""Registration with torch: schema, shapes for tracing, gradient. Element-wise: no FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kunlun.ops.dispatch import runs_on
from kunlun.ops.native import rows
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake
from kunlun.ops.rotary import portable


@operator
def rotary_op(x: Tensor, angle: Tensor, turned: int, backend: str) -> list[Tensor]:
    """x [L, P, H, D] -> P tensors [L, H, D], the first `turned` rotated.

    Opaque, since compilers handle complex numbers badly. `backend`: "" lets choose decide.
    """
    if _runs_native(x, angle, backend):
        return rows.rotary_forward(x, angle, turned)
    parts = x.unbind(1)
    return [*(portable.forward(p, angle) for p in parts[:turned]), *map(_copy, parts[turned:])]


@operator
def rotary_backward_op(
    grads: list[Tensor], outs: list[Tensor], angle: Tensor, by_angle: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """dx [L, P, H, D] from the gradients of the P results, and the angles' gradient from the
    turned results (empty unless `by_angle`: most callers' angles are data)."""
    if _runs_native(grads[0], angle, backend):
        return rows.rotary_backward(grads, outs, angle, by_angle)
    turned = len(outs)
    back = [portable.forward(g, -angle) for g in grads[:turned]]  # undone by the negative angle
    d_angle = angle.new_zeros(angle.shape if by_angle else (0,))
    if by_angle:  # a product with the conjugate does not change when both factors are turned
        for grad, out in zip(grads, outs, strict=False):
            d_angle += portable.by_angle(grad, out, angle)
    return torch.stack([*back, *grads[turned:]], dim=1), d_angle


@register_fake(rotary_op)
def _(x: Tensor, angle: Tensor, turned: int, backend: str) -> list[Tensor]:
    return [x.new_empty((x.shape[0], *x.shape[2:])) for _ in range(x.shape[1])]


@register_fake(rotary_backward_op)
def _(
    grads: list[Tensor], outs: list[Tensor], angle: Tensor, by_angle: bool, backend: str
) -> tuple[Tensor, Tensor]:
    length, heads, width = grads[0].shape
    dx = grads[0].new_empty((length, len(grads), heads, width))
    return dx, angle.new_empty(angle.shape if by_angle else (0,))


def _runs_native(x: Tensor, angle: Tensor, backend: str) -> bool:
    return runs_on("rotary", angle if angle.dtype == torch.float64 else x, backend) == "native"


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, angle, ctx.turned, ctx.backend = inputs
    ctx.by_angle = ctx.needs_input_grad[1]
    ctx.save_for_backward(angle, *output[: ctx.turned])


def _differentiate(ctx: Any, saved: Saved, grads: list[Tensor]) -> tuple[Any, ...]:
    angle, *outs = saved
    dx, d_angle = rotary_backward_op(grads, outs, angle, ctx.by_angle, ctx.backend)
    return dx, d_angle if ctx.by_angle else None, None, None


register_autograd(rotary_op, _differentiate, save=_save)
