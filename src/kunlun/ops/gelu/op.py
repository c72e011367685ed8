"""Registration with torch: schema, shapes for tracing, gradient. Element-wise: no FLOPs.

`backend`: "" lets choose decide; without the library both operators are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.ops.dispatch import runs_on
from kunlun.ops.native import rows
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake


@operator
def gelu_approx_op(x: Tensor, backend: str = "") -> Tensor:
    if runs_on("gelu_approx", x, backend) == "native":
        return rows.gelu_forward(x)
    return F.gelu(x.contiguous(), approximate="tanh")


@operator
def gelu_approx_backward_op(grad: Tensor, x: Tensor, backend: str = "") -> Tensor:
    if runs_on("gelu_approx", x, backend) == "native":
        return rows.gelu_backward(grad, x)
    dx: Tensor = torch.ops.aten.gelu_backward(grad.contiguous(), x.contiguous(), approximate="tanh")
    return dx


@register_fake(gelu_approx_op)
def _(x: Tensor, backend: str = "") -> Tensor:
    return x.new_empty(x.shape)


@register_fake(gelu_approx_backward_op)
def _(grad: Tensor, x: Tensor, backend: str = "") -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.backend = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, saved: Saved, grad: Tensor) -> tuple[Tensor, None]:
    return gelu_approx_backward_op(grad, *saved, ctx.backend), None


register_autograd(gelu_approx_op, _differentiate, save=_save)
