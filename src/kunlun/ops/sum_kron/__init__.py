"""A linear map of a whole [S, D] block that mixes rows and columns at low cost."""

from __future__ import annotations

from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_like, check_rows
from kunlun.ops.sum_kron.op import sum_kron_op


def sum_kron(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """sum_i z_i^T x w_i for every sample: a sum of k Kronecker products acting on x.

    The second stage of hierarchical seed pooling (paper 4.3.2): S pooled rows become T tokens
    with k * (S * T + D * D2) weights instead of the S * D * T * D2 of a full linear map.

    Cost: 2 * n * k * min(S * T * D + T * D * D2, S * D * D2 + S * T * D2) FLOPs forward (the
    cheaper order is taken), twice that backward; reads x, writes n * T * D2 elements, and one
    intermediate of k times either is kept for the backward.

    Args:
        x: [n, S, D].
        z: [k, S, T], the row mixers.
        w: [k, D, D2], the column mixers.

    Returns: [n, T, D2] in x's dtype.

    Raises:
        ShapeError: an argument that does not fit, by name.

    Example:
        >>> import torch
        >>> from kunlun.ops import sum_kron
        >>> sum_kron(torch.ones(5, 4, 3), torch.ones(2, 4, 6), torch.ones(2, 3, 7))[0, 0, 0]
        tensor(24.)
    """
    check_rows("x", x, "n, S, D")
    check_rows("z", z, "k, S, T")
    check_rows("w", w, "k, D, D2")
    check_like("z", z, "x", x)
    check_like("w", w, "x", x)
    if z.shape[1] != x.shape[1]:
        raise ShapeError(f"z: mixes {z.shape[1]} rows, but x has {x.shape[1]}")
    if w.shape[1] != x.shape[2]:
        raise ShapeError(f"w: mixes {w.shape[1]} columns, but x has {x.shape[2]}")
    if w.shape[0] != z.shape[0]:
        raise ShapeError(f"w: {w.shape[0]} terms, but z has {z.shape[0]}")
    out: Tensor = sum_kron_op(x, z, w)[0]
    return out
