"""Spans of time as bucket numbers: two for every doubling."""

from __future__ import annotations

import torch
from torch import Tensor

# float32 read as an integer: exponent and first bit of the mantissa count the half octaves.
_HALF_OCTAVE = 22
_BELOW_A_SECOND = 0.75
_FIRST = 253  # that count at 0.75


def time_buckets(seconds: Tensor, buckets: int) -> Tensor:
    """Bucket 0 below one second, then one more at 1, 1.5, 2, 3, 4, 6, ... seconds.

    seconds: any floating-point shape, 0 or more -> int32 of that shape, at most buckets - 1; 64
    buckets reach 136 years. Exact: no logarithm is taken.
    """
    # a copy, which the in-place steps may change
    span = seconds.to(torch.float32, copy=True).clamp_(min=_BELOW_A_SECOND)
    return (span.view(torch.int32) >> _HALF_OCTAVE).sub_(_FIRST).clamp_(max=buckets - 1)
