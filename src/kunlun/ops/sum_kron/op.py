"""Registration with torch: schema, shapes for tracing, gradient, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kunlun.ops import flops
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake
from kunlun.ops.sum_kron import portable


@operator
def sum_kron_op(x: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and what lies between the two products, for the backward."""
    return portable.forward(x, z, w)


@operator
def sum_kron_backward_op(
    grad: Tensor, x: Tensor, z: Tensor, w: Tensor, between: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return portable.backward(grad, x, z, w, between)


@register_fake(sum_kron_op)
def _(x: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    (n, s, d), (k, _, t), d2 = x.shape, z.shape, w.shape[2]
    between = (n, t * k, d) if portable.rows_first(x, z, w) else (n, s * k, d2)
    return x.new_empty((n, t, d2)), x.new_empty(between)


@register_fake(sum_kron_backward_op)
def _(
    grad: Tensor, x: Tensor, z: Tensor, w: Tensor, between: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), z.new_empty(z.shape), w.new_empty(w.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(
    ctx: Any, saved: Saved, grad: Tensor, _: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dz, dw = sum_kron_backward_op(grad, *saved)
    return dx, dz, dw


register_autograd(sum_kron_op, _differentiate, save=_save)


def _flops(x: Any, z: Any, w: Any) -> int:
    return flops.sum_kron_flops(x[0], z[1], z[2], z[0], w[1], w[2])


@register_flop_formula(torch.ops.kunlun.sum_kron)
def _(x: Any, z: Any, w: Any, *_: Any, **__: Any) -> int:
    return _flops(x, z, w)


@register_flop_formula(torch.ops.kunlun.sum_kron_backward)
def _(grad: Any, x: Any, z: Any, w: Any, *_: Any, **__: Any) -> int:
    return 2 * _flops(x, z, w)
