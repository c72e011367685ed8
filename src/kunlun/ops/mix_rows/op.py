"""Registration with torch: schema, shapes for tracing, gradient, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kunlun.ops.mix_rows import portable
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake


@operator
def mix_rows_op(x: Tensor, z: Tensor) -> Tensor:
    return portable.forward(x, z)


@operator
def mix_rows_backward_op(grad: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return portable.backward(grad, x, z)


@register_fake(mix_rows_op)
def _(x: Tensor, z: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], z.shape[1], x.shape[2]))


@register_fake(mix_rows_backward_op)
def _(grad: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), z.new_empty(z.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, saved: Saved, grad: Tensor) -> tuple[Tensor, Tensor]:
    dx, dz = mix_rows_backward_op(grad, *saved)
    return dx, dz


register_autograd(mix_rows_op, _differentiate, save=_save)


@register_flop_formula(torch.ops.kunlun.mix_rows)
def _(x: Any, z: Any, *_: Any, **__: Any) -> int:
    return int(2 * x[0] * z[0] * z[1] * x[2])


@register_flop_formula(torch.ops.kunlun.mix_rows_backward)
def _(grad: Any, x: Any, z: Any, *_: Any, **__: Any) -> int:
    return int(4 * x[0] * z[0] * z[1] * x[2])
