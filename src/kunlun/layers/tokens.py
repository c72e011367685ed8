"""Linear maps over the token axis."""

from __future__ import annotations

from torch import Tensor

from kunlun.layers.norm import product_dtype
from kunlun.ops import mix_rows


def mix_tokens(weight: Tensor, x: Tensor) -> Tensor:
    """weight [T, S], x [n, S, D] -> [n, T, D], in autocast's dtype where that is on."""
    dtype = product_dtype(x)
    return mix_rows(x.to(dtype), weight.T.to(dtype))
