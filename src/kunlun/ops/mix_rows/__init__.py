"""A linear map over the rows of every sample, shared by all samples."""

from __future__ import annotations

from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_like, check_rows
from kunlun.ops.mix_rows.op import mix_rows_op


def mix_rows(x: Tensor, z: Tensor) -> Tensor:
    """z^T x for every sample: S rows become T.

    What makes summary tokens of context tokens, hidden rows of summary tokens, and is the first or
    second half of sum_kron. torch.matmul(z.T, x) says the same and copies x and its gradient to
    fold the batch into one product; three batched products with a shared factor need no copy.

    Cost: 2 * n * S * T * D FLOPs forward, twice that backward; reads x and writes the result once.

    Args:
        x: [n, S, D].
        z: [S, T], of x's dtype.

    Returns: [n, T, D] in x's dtype.

    Raises:
        ShapeError: an argument that does not fit, by name.

    Example:
        >>> import torch
        >>> from kunlun.ops import mix_rows
        >>> mix_rows(torch.ones(5, 4, 3), torch.ones(4, 2))[0]
        tensor([[4., 4., 4.],
                [4., 4., 4.]])
    """
    check_rows("x", x, "n, S, D")
    check_rows("z", z, "S, T")
    check_like("z", z, "x", x)
    if z.shape[0] != x.shape[1]:
        raise ShapeError(f"z: mixes {z.shape[0]} rows, but x has {x.shape[1]}")
    out: Tensor = mix_rows_op(x, z)
    return out
