"""Sliding-window self-attention: every row reads the rows at most `window` away."""

from __future__ import annotations

import math

from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_kv, check_like, check_offsets, check_rows
from kunlun.ops.dispatch import choose
from kunlun.ops.window_attention.op import window_attention_op


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    window: int,
    causal: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention of each packed sequence with itself, over |i - j| <= window.

    Linear in the sequence length, for histories where what is near in time matters (paper 4.3.3,
    sliding window attention). A window wider than a sequence is full attention.

    Cost: 4 * H * D * pairs FLOPs forward and 2.5 times that backward, where a sequence of T rows
    has T + 2 * (w * T - w * (w + 1) / 2) pairs, w = min(window, T - 1); reads q, k, v and writes
    the result once, so at least (2 * H + 2 * Hkv) * L * D elements move. Kept for the backward:
    the inputs, the result and one number a row and head. A sequence's result does not depend on
    its neighbours in the batch, bit for bit.

    Args:
        q: [L, H, D] packed rows; float32, bfloat16, float16 or float64, any strides.
        k: [L, Hkv, D] keys of the same rows; H a multiple of Hkv, head h reads h // (H / Hkv).
        v: [L, Hkv, D] values.
        offsets: int32 or int64 [n + 1]; sequence i is q[offsets[i]:offsets[i + 1]].
        window: 0 or more; row i reads rows i - window to i + window of its own sequence.
        causal: only rows up to i.
        scale: multiplies the scores; None is 1 / sqrt(D).
        backend: force one; None lets kunlun.ops.choose decide. On a GPU the triton kernels do not
            wait for the offsets' values, so these are not checked there.

    Returns: [L, H, D] in q's dtype, computed in float32 (float64 for float64). Scores must stay
        below 1e29 in size, times `scale`: that of a pair outside the band is -1e30.

    Raises:
        ShapeError: an argument that does not fit, by name.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import torch
        >>> from kunlun.ops import window_attention
        >>> x, v = torch.zeros(4, 1, 2), torch.arange(4.0)[:, None, None].expand(4, 1, 2)
        >>> window_attention(x, x, v, torch.tensor([0, 3, 4]), window=1)[:, 0, 0]
        tensor([0.5000, 1.0000, 1.5000, 3.0000])
    """
    check_rows("q", q)
    check_kv(k, v, q.shape[1], q.shape[2], "q")
    check_like("k", k, "q", q)
    check_like("v", v, "q", q)
    if k.shape[0] != q.shape[0]:
        raise ShapeError(f"k: {k.shape[0]} rows, but q has {q.shape[0]}")
    check_offsets("offsets", offsets, "q", q)
    if window < 0:
        raise ShapeError(f"window: {window} is negative; 0 is a row alone")
    width = q.shape[2]
    choose("window_attention", device=q.device, dtype=q.dtype, width=width, backend=backend)
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    settings = (window, causal, scale, backend or "")
    out: Tensor = window_attention_op(q, k, v, offsets, *settings)[0]
    return out
