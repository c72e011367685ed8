"""HSTU's pointwise attention: every row reads the rows before it through SiLU, without softmax."""

from __future__ import annotations

import math

from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_kv, check_like, check_offsets, check_rows
from kunlun.ops.dispatch import choose
from kunlun.ops.hstu_attention.op import check_biased, hstu_attention_op

_EVERYTHING = 2**62  # a window no sequence reaches


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    time: Tensor,
    position_bias: Tensor,
    time_bias: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    out_scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Causal attention of each packed sequence with itself, weighted by SiLU of biased scores.

    Row i gets out_scale * sum over j <= i of silu(scale * q_i . k_j + rab_ij) v_j (HSTU,
    2402.17152, eq. 2). The relative bias is the same for all heads,
    rab_ij = position_bias[min(i - j, P - 1)] + time_bias[min(bucket(|t_i - t_j|), Q - 1)], with
    bucket 0 below one second and two buckets for every doubling above: at 1, 1.5, 2, 3, 4, 6, ...
    seconds. Without a softmax the number of matching rows counts, not their share.

    Cost: 4 * H * D * pairs FLOPs forward and 2.5 times that backward, where a sequence of T rows
    has T + w * T - w * (w + 1) / 2 pairs, w = min(window, T - 1); reads q, k, v and writes the
    result once, so at least 4 * H * L * D elements move. Scores and biases exist a tile at a
    time; nothing but the inputs is kept for the backward. A sequence's result does not depend on
    its neighbours in the batch, bit for bit.

    Args:
        q: [L, H, D] packed rows; float32, bfloat16, float16 or float64, any strides.
        k: [L, H, D] keys of the same rows.
        v: [L, H, D] values.
        offsets: int32 or int64 [n + 1]; sequence i is q[offsets[i]:offsets[i + 1]].
        time: float32 or float64 [L], seconds from any origin, and of any direction: only
            differences count. Gets no gradient.
        position_bias: [P], P at least 1, of any floating-point dtype.
        time_bias: [Q], Q at least 1; 64 buckets reach 136 years.
        window: 0 or more; row i reads no further back than row i - window. None: all before it.
        scale: multiplies the scores; None is 1 / sqrt(D).
        out_scale: multiplies the weights; HSTU divides by the configured longest sequence.
        backend: force one; None lets kunlun.ops.choose decide.

    Returns: [L, H, D] in q's dtype, computed in float32 (float64 for float64).

    Raises:
        ShapeError: an argument that does not fit, by name.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import torch
        >>> from kunlun.ops import hstu_attention
        >>> x, v = torch.zeros(3, 1, 2), torch.arange(3.0)[:, None, None].expand(3, 1, 2)
        >>> time, near = torch.zeros(3), torch.tensor([9.0, 0.0])
        >>> hstu_attention(x, x, v, torch.tensor([0, 3]), time, near, torch.zeros(1))[:, 0, 0]
        tensor([ 0.0000,  8.9989, 17.9978])
    """
    check_rows("q", q)
    check_kv(k, v, q.shape[1], q.shape[2], "q")
    check_like("k", k, "q", q)
    check_like("v", v, "q", q)
    if k.shape != q.shape:
        raise ShapeError(f"k: shape {list(k.shape)} differs from q's {list(q.shape)}")
    check_offsets("offsets", offsets, "q", q)
    check_biased(q, time, position_bias, time_bias)
    for name, x in (("time", time), ("position_bias", position_bias), ("time_bias", time_bias)):
        if x.device != q.device:
            raise ShapeError(f"{name}: on {x.device}, but q is on {q.device}")
    if window is not None and window < 0:
        raise ShapeError(f"window: {window} is negative; 0 is a row alone")
    choose("hstu_attention", device=q.device, dtype=q.dtype, width=q.shape[2], backend=backend)
    out: Tensor = hstu_attention_op(
        q, k, v, offsets, time, position_bias, time_bias,
        _EVERYTHING if window is None else window,
        1 / math.sqrt(q.shape[2]) if scale is None else scale, out_scale, backend or "",
    )  # fmt: skip
    return out
