"""Registration with torch: schema, shapes for tracing, gradient. Element-wise: no FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kunlun.ops.rotary import portable


@torch.library.custom_op("kunlun::rotary", mutates_args=())
def rotary_op(x: Tensor, angle: Tensor) -> Tensor:
    """Opaque, since compilers handle complex numbers badly."""
    return portable.forward(x, angle)


@torch.library.custom_op("kunlun::rotary_backward_angle", mutates_args=())
def rotary_backward_angle_op(dx: Tensor, x: Tensor, angle: Tensor) -> Tensor:
    """Apart from dx: most callers' angles are data and need no gradient."""
    return portable.by_angle(dx, x, angle)


@rotary_op.register_fake
def _(x: Tensor, angle: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@rotary_backward_angle_op.register_fake
def _(dx: Tensor, x: Tensor, angle: Tensor) -> Tensor:
    return angle.new_empty(angle.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, angle = inputs
    ctx.save_for_backward(angle, *([x] if ctx.needs_input_grad[1] else []))


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    angle, *x = ctx.saved_tensors
    dx: Tensor = rotary_op(grad, -angle)  # a rotation is undone by its negative
    return dx, rotary_backward_angle_op(dx, *x, angle) if x else None


rotary_op.register_autograd(_differentiate, setup_context=_save)
