"""Attention pooling: a fixed set of learned queries reads every sequence of the batch."""

from __future__ import annotations

import math

from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_kv, check_like, check_offsets, check_rows
from kunlun.ops.dispatch import choose
from kunlun.ops.seed_attention.op import seed_attention_op


def seed_attention(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention of the same S queries over each packed sequence.

    Turns a sequence of any length into S rows (pooling by multi-head attention; the first stage
    of hierarchical seed pooling, paper 4.3.2).

    Cost: 4 * S * L * H * D FLOPs forward and 2.5 times that backward; reads k and v once and
    writes n * S * H * D elements. Kept for the backward: the inputs, the result and one number a
    result row. A sequence's result does not depend on its neighbours in the batch, bit for bit.

    Args:
        seeds: [S, H, D] queries, at least one; float32, bfloat16, float16 or float64, any strides.
        k: [L, H, D] packed keys.
        v: [L, H, D] packed values.
        offsets: int32 or int64 [n + 1]; sequence i is k[offsets[i]:offsets[i + 1]].
        scale: multiplies the scores; None is 1 / sqrt(D).
        backend: force one; None lets kunlun.ops.choose decide. On a GPU the triton kernels do not
            wait for the offsets' values, so these are not checked there.

    Returns: [n, S, H, D] in k's dtype, computed in float32 (float64 for float64); an empty
        sequence gives zeros and passes no gradient. Scores must stay below 1e29 in size, times
        `scale`: that of padding is -1e30.

    Raises:
        ShapeError: an argument that does not fit, by name.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import torch
        >>> from kunlun.ops import seed_attention
        >>> seeds, k = torch.zeros(1, 1, 2), torch.tensor([1.0, 3.0, 5.0])[:, None, None]
        >>> k = k.expand(3, 1, 2)
        >>> seed_attention(seeds, k, k, torch.tensor([0, 2, 2, 3])).flatten(1)[:, 0]
        tensor([2., 0., 5.])
    """
    check_rows("seeds", seeds, "S, H, D")
    if seeds.shape[0] == 0:
        raise ShapeError(
            f"seeds: expected [S, H, D] with S at least 1, got shape {list(seeds.shape)}"
        )
    check_kv(k, v, seeds.shape[1], seeds.shape[2], "seeds")
    check_like("k", k, "seeds", seeds)
    check_like("v", v, "seeds", seeds)
    if k.shape[1] != seeds.shape[1]:
        raise ShapeError(f"k: {k.shape[1]} heads, but seeds has {seeds.shape[1]}")
    check_offsets("offsets", offsets, "k", k)
    width = k.shape[2]
    choose("seed_attention", device=k.device, dtype=k.dtype, width=width, backend=backend)
    scale = 1 / math.sqrt(seeds.shape[2]) if scale is None else scale
    out: Tensor = seed_attention_op(seeds, k, v, offsets, scale, backend or "")[0]
    return out
