"""Registration with torch: schema, shapes for tracing, gradient, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kunlun.ops import flops
from kunlun.ops.checks import read_offsets
from kunlun.ops.dispatch import runs_on
from kunlun.ops.native import attention
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake
from kunlun.ops.seed_attention import portable
from kunlun.ops.tiles import compute_dtype


@operator
def seed_attention_op(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, backend: str = ""
) -> tuple[Tensor, Tensor]:
    """The result and the log2-sum-exp2 [n, S, H] (0 for an empty sequence).

    `backend`: "" lets choose decide.
    """
    runs = runs_on("seed_attention", k, backend)
    if runs == "native":
        return attention.seed_forward(seeds, k, v, offsets, scale)
    if runs == "triton":
        from kunlun.ops.seed_attention import kernels

        with torch.cuda.device_of(k):  # where Triton launches
            return kernels.forward(seeds, k, v, offsets, scale)
    return portable.forward(seeds, k, v, read_offsets("offsets", offsets, k.shape[0]), scale)


@operator
def seed_attention_backward_op(
    grad: Tensor,
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    scale: float,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    runs = runs_on("seed_attention", k, backend)
    if runs == "native":
        return attention.seed_backward(grad, seeds, k, v, out, lse, offsets, scale)
    if runs == "triton":
        from kunlun.ops.seed_attention import kernels

        with torch.cuda.device_of(k):  # where Triton launches
            return kernels.backward(grad, seeds, k, v, out, lse, offsets, scale)
    rows = read_offsets("offsets", offsets, k.shape[0])
    return portable.backward(grad, seeds, k, v, out, lse, rows, scale)


@register_fake(seed_attention_op)
def _(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    n, (s, heads, width) = offsets.shape[0] - 1, seeds.shape
    lse = k.new_empty((n, s, heads), dtype=compute_dtype(k.dtype))
    return k.new_empty((n, s, heads, width)), lse


@register_fake(seed_attention_backward_op)
def _(
    grad: Tensor, seeds: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return seeds.new_empty(seeds.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    seeds, k, v, offsets, *ctx.settings = inputs
    ctx.save_for_backward(seeds, k, v, *output, offsets)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, saved: Saved, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    grads = seed_attention_backward_op(grad, *saved, *ctx.settings)
    return *grads, None, None, None


register_autograd(seed_attention_op, _differentiate, save=_save)


@register_flop_formula(torch.ops.kunlun.seed_attention, get_raw=True)
def _(seeds: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return flops.seed_attention_flops(k.shape[0], *seeds.shape)


@register_flop_formula(torch.ops.kunlun.seed_attention_backward, get_raw=True)
def _(grad: Tensor, seeds: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return flops.seed_attention_backward_flops(k.shape[0], *seeds.shape)
