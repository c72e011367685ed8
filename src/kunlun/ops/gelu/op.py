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


@torch.library.custom_op("kunlun::gelu_approx", mutates_args=())
def gelu_approx_op(x: Tensor, backend: str = "") -> Tensor:
    if runs_on("gelu_approx", x, backend) == "native":
        return rows.gelu_forward(x)
    return F.gelu(x.contiguous(), approximate="tanh")


@torch.library.custom_op("kunlun::gelu_approx_backward", mutates_args=())
def gelu_approx_backward_op(grad: Tensor, x: Tensor, backend: str = "") -> Tensor:
    if runs_on("gelu_approx", x, backend) == "native":
        return rows.gelu_backward(grad, x)
    dx: Tensor = torch.ops.aten.gelu_backward(grad.contiguous(), x.contiguous(), approximate="tanh")
    return dx


@gelu_approx_op.register_fake
def _(x: Tensor, backend: str = "") -> Tensor:
    return x.new_empty(x.shape)


@gelu_approx_backward_op.register_fake
def _(grad: Tensor, x: Tensor, backend: str = "") -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.backend = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return gelu_approx_backward_op(grad, *ctx.saved_tensors, ctx.backend), None


gelu_approx_op.register_autograd(_differentiate, setup_context=_save)
