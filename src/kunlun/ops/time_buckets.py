"""Spans of time as bucket numbers: two for every doubling."""

from __future__ import annotations

import torch
from torch import Tensor

_BELOW_A_SECOND = 0.75
# A float read as an integer: exponent and first bit of the mantissa count the half octaves. So many
# bits are behind them, and that is the count at 0.75.
_FLOATS = {torch.float32: (torch.int32, 22, 253), torch.float64: (torch.int64, 51, 2045)}


def time_buckets(seconds: Tensor, buckets: int) -> Tensor:
    """Bucket 0 below one second, then one more at 1, 1.5, 2, 3, 4, 6, ... seconds.

    seconds: float32 or float64 of any shape, 0 or more -> int32 of that shape, at most buckets - 1;
    64 buckets reach 136 years. Exact: no logarithm is taken, and nothing is rounded.
    """
    whole, behind, first = _FLOATS[seconds.dtype]
    span = seconds.clamp(min=_BELOW_A_SECOND)
    count = (span.view(whole) >> behind).sub_(first).clamp_(max=buckets - 1)
    return count.to(torch.int32)
