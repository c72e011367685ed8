"""Registration with torch: schema, shapes for tracing, gradient, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kunlun.ops import flops
from kunlun.ops.checks import known_lengths, read_offsets
from kunlun.ops.dispatch import runs_on
from kunlun.ops.native import attention
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake
from kunlun.ops.tiles import compute_dtype
from kunlun.ops.window_attention import portable


@operator
def window_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    window: int,
    causal: bool,
    scale: float,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """The result and the log2-sum-exp2 [L, H] of each row's scores.

    `backend`: "" lets choose decide.
    """
    runs = runs_on("window_attention", q, backend)
    if runs == "native":
        return attention.window_forward(q, k, v, offsets, window, causal, scale)
    if runs == "triton":
        from kunlun.ops.window_attention import kernels

        with torch.cuda.device_of(q):  # where Triton launches
            return kernels.forward(q, k, v, offsets, window, causal, scale)
    rows = read_offsets("offsets", offsets, q.shape[0])
    return portable.forward(q, k, v, rows, window, causal, scale)


@operator
def window_attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    window: int,
    causal: bool,
    scale: float,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    runs = runs_on("window_attention", q, backend)
    if runs == "native":
        return attention.window_backward(grad, q, k, v, out, lse, offsets, window, causal, scale)
    if runs == "triton":
        from kunlun.ops.window_attention import kernels

        with torch.cuda.device_of(q):  # where Triton launches
            return kernels.backward(grad, q, k, v, out, lse, offsets, window, causal, scale)
    rows = read_offsets("offsets", offsets, q.shape[0])
    return portable.backward(grad, q, k, v, out, lse, rows, window, causal, scale)


@register_fake(window_attention_op)
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=compute_dtype(q.dtype))


@register_fake(window_attention_backward_op)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, saved: Saved, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    dq, dk, dv = window_attention_backward_op(grad, *saved, *ctx.settings)
    return dq, dk, dv, None, None, None, None, None


register_autograd(window_attention_op, _differentiate, save=_save)


def _pairs(q: Tensor, offsets: Tensor, window: int, causal: bool) -> float:
    lengths = known_lengths(offsets)
    if lengths is not None:
        return sum(flops.window_pairs(n, window, causal) for n in lengths)
    # Traced without values: as if every sequence had the average length.
    n = max(offsets.shape[0] - 1, 1)
    return n * flops.window_pairs(q.shape[0] // n, window, causal)


@register_flop_formula(torch.ops.kunlun.window_attention, get_raw=True)
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    window: int,
    causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    pairs = _pairs(q, offsets, window, causal)
    return flops.window_attention_flops(pairs, q.shape[1], q.shape[2])


@register_flop_formula(torch.ops.kunlun.window_attention_backward, get_raw=True)
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    window: int,
    causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    pairs = _pairs(q, offsets, window, causal)
    return flops.window_attention_backward_flops(pairs, q.shape[1], q.shape[2])
