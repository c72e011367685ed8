"""Registration with torch: schema, shapes for tracing, gradient, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kunlun.errors import ShapeError
from kunlun.ops import flops
from kunlun.ops.checks import check_rows, known_lengths, read_offsets
from kunlun.ops.dispatch import runs_on
from kunlun.ops.hstu_attention import portable
from kunlun.ops.native import hstu as native
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake


def check_biased(q: Tensor, time: Tensor, position_bias: Tensor, time_bias: Tensor) -> None:
    """What the native library would divide by, or read past the end of.

    The registered operators check it, too: programs that were exported call them.
    """
    check_rows("q", q)
    if time.shape != q.shape[:1]:
        raise ShapeError(f"time: expected [{q.shape[0]}], got shape {list(time.shape)}")
    if time.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"time: expected float32 or float64, got {time.dtype}")
    for name, table in (("position_bias", position_bias), ("time_bias", time_bias)):
        check_rows(name, table, "buckets")
        if table.shape[0] == 0:
            raise ShapeError(f"{name}: no buckets; one of zero means no such bias")


@operator
def hstu_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    window: int,
    scale: float,
    out_scale: float,
    backend: str = "",
) -> Tensor:
    """`backend`: "" lets choose decide."""
    check_biased(q, time, position_bias, time_bias)
    if runs_on("hstu_attention", q, backend) == "native":
        tables = position_bias, time_bias
        return native.forward(q, k, v, offsets, time, *tables, window, scale, out_scale)
    rows = read_offsets("offsets", offsets, q.shape[0])
    settings = portable.Settings(window, scale, out_scale)
    return portable.forward(q, k, v, rows, time, position_bias, time_bias, settings)


@operator
def hstu_attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    window: int,
    scale: float,
    out_scale: float,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_biased(q, time, position_bias, time_bias)
    if runs_on("hstu_attention", q, backend) == "native":
        tables = position_bias, time_bias
        return native.backward(grad, q, k, v, offsets, time, *tables, window, scale, out_scale)
    rows = read_offsets("offsets", offsets, q.shape[0])
    settings = portable.Settings(window, scale, out_scale)
    return portable.backward(grad, q, k, v, rows, time, position_bias, time_bias, settings)


@register_fake(hstu_attention_op)
def _(q: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape)


@register_fake(hstu_attention_backward_op)
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    p, t = (x.new_empty(x.shape) for x in (position_bias, time_bias))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), p, t


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.settings = inputs[7:]


def _differentiate(ctx: Any, saved: Saved, grad: Tensor) -> tuple[Any, ...]:
    dq, dk, dv, dp, dt = hstu_attention_backward_op(grad, *saved, *ctx.settings)
    return dq, dk, dv, None, None, dp, dt, None, None, None, None


register_autograd(hstu_attention_op, _differentiate, save=_save)


def _pairs(q: Tensor, offsets: Tensor, window: int) -> float:
    lengths = known_lengths(offsets)
    if lengths is not None:
        return sum(flops.window_pairs(n, window, causal=True) for n in lengths)
    # Traced without values: as if every sequence had the average length.
    n = max(offsets.shape[0] - 1, 1)
    return n * flops.window_pairs(q.shape[0] // n, window, causal=True)


@register_flop_formula(torch.ops.kunlun.hstu_attention, get_raw=True)
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    window: int,
    *_: Any,
    **__: Any,
) -> int:
    return flops.gdpa_flops(_pairs(q, offsets, window), q.shape[1], q.shape[2])


@register_flop_formula(torch.ops.kunlun.hstu_attention_backward, get_raw=True)
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    window: int,
    *_: Any,
    **__: Any,
) -> int:
    return flops.gdpa_backward_flops(_pairs(q, offsets, window), q.shape[1], q.shape[2])
