"""Registration with torch: schema, shapes for tracing, gradient, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kunlun.ops import flops
from kunlun.ops.checks import known_lengths, read_offsets
from kunlun.ops.dispatch import runs_on
from kunlun.ops.gdpa import portable
from kunlun.ops.native import attention
from kunlun.ops.registration import Saved, operator, register_autograd, register_fake


@operator
def gdpa_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    activation: str,
    scale: float,
    out_scale: float,
    backend: str = "",
) -> Tensor:
    """`activation`: one name a head, joined by commas; `backend`: "" lets choose decide."""
    runs = runs_on("gdpa", q, backend)
    if runs == "native":
        return attention.gdpa_forward(q, k, v, q_offsets, kv_offsets, activation, scale, out_scale)
    names = activation.split(",")
    if runs == "triton":
        from kunlun.ops.gdpa import kernels

        with torch.cuda.device_of(q):  # where Triton launches
            return kernels.forward(q, k, v, q_offsets, kv_offsets, names, scale, out_scale)
    rows = read_offsets("q_offsets", q_offsets, q.shape[0])
    keys = read_offsets("kv_offsets", kv_offsets, k.shape[0])
    return portable.forward(q, k, v, rows, keys, names, scale, out_scale)


@operator
def gdpa_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    activation: str,
    scale: float,
    out_scale: float,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    runs = runs_on("gdpa", q, backend)
    if runs == "native":
        return attention.gdpa_backward(
            grad, q, k, v, q_offsets, kv_offsets, activation, scale, out_scale
        )
    names = activation.split(",")
    if runs == "triton":
        from kunlun.ops.gdpa import kernels

        with torch.cuda.device_of(q):  # where Triton launches
            return kernels.backward(grad, q, k, v, q_offsets, kv_offsets, names, scale, out_scale)
    rows = read_offsets("q_offsets", q_offsets, q.shape[0])
    keys = read_offsets("kv_offsets", kv_offsets, k.shape[0])
    return portable.backward(grad, q, k, v, rows, keys, names, scale, out_scale)


@register_fake(gdpa_op)
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape)


@register_fake(gdpa_backward_op)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _differentiate(ctx: Any, saved: Saved, grad: Tensor) -> tuple[Any, ...]:
    dq, dk, dv = gdpa_backward_op(grad, *saved, *ctx.settings)
    return dq, dk, dv, None, None, None, None, None, None


register_autograd(gdpa_op, _differentiate, save=_save)


def _pairs(q: Tensor, k: Tensor, q_offsets: Tensor, kv_offsets: Tensor) -> float:
    rows, keys = known_lengths(q_offsets), known_lengths(kv_offsets)
    if rows is not None and keys is not None:
        return flops.gdpa_pairs(rows, keys)
    # Traced without values: as if every sample had the average length.
    return q.shape[0] * k.shape[0] / max(q_offsets.shape[0] - 1, 1)


@register_flop_formula(torch.ops.kunlun.gdpa, get_raw=True)
def _(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, kv_offsets: Tensor, *_: Any, **__: Any
) -> int:
    return flops.gdpa_flops(_pairs(q, k, q_offsets, kv_offsets), q.shape[1], q.shape[2])


@register_flop_formula(torch.ops.kunlun.gdpa_backward, get_raw=True)
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    return flops.gdpa_backward_flops(_pairs(q, k, q_offsets, kv_offsets), q.shape[1], q.shape[2])
