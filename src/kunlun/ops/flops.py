"""Useful floating-point operations of the operators, as plain formulas on python numbers.

A multiply and an add count two; element-wise work (activation, softmax) counts nothing, as in
torch.utils.flop_counter. `pairs` is the number of (query row, key row) pairs a head computes,
summed over the batch: no padding, nothing outside a band. The same functions serve the flop
counter on real batches and a model's dry run on expected lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

BACKWARD = 2.5
"""Backward over forward for gdpa and both attentions: five products (scores again, the
gradients of p, q, k and v) instead of two."""


def gdpa_pairs(q_lengths: Sequence[int], kv_lengths: Sequence[int]) -> int:
    """sum_b q_lengths[b] * kv_lengths[b]."""
    return sum(q * k for q, k in zip(q_lengths, kv_lengths, strict=True))


def window_pairs(length: int, window: int, causal: bool = False) -> int:
    """Pairs with |i - j| <= window (causal: and j <= i) in a sequence of `length` rows."""
    reach = min(window, max(length - 1, 0))
    one_side = reach * length - reach * (reach + 1) // 2
    return length + (one_side if causal else 2 * one_side)


def gdpa_flops(pairs: float, heads: int, dim: int) -> int:
    """Forward: two products, 4 * pairs * heads * dim."""
    return int(4 * pairs * heads * dim)


def gdpa_backward_flops(pairs: float, heads: int, dim: int) -> int:
    """Backward: five products, 10 * pairs * heads * dim."""
    return int(10 * pairs * heads * dim)


def window_attention_flops(pairs: float, heads: int, dim: int) -> int:
    """Forward, with pairs = sum of window_pairs over the sequences."""
    return gdpa_flops(pairs, heads, dim)


def window_attention_backward_flops(pairs: float, heads: int, dim: int) -> int:
    """Backward, with pairs = sum of window_pairs over the sequences."""
    return gdpa_backward_flops(pairs, heads, dim)


def seed_attention_flops(rows: float, seeds: int, heads: int, dim: int) -> int:
    """Forward over `rows` packed rows, each read by every seed."""
    return gdpa_flops(rows * seeds, heads, dim)


def seed_attention_backward_flops(rows: float, seeds: int, heads: int, dim: int) -> int:
    """Backward over `rows` packed rows, each read by every seed."""
    return gdpa_backward_flops(rows * seeds, heads, dim)


def sum_kron_flops(n: float, s: int, t: int, k: int, d: int, d2: int) -> int:
    """Forward of the cheaper order; the backward is exactly twice this."""
    return int(
        2 * n * min(sum_kron_rows_first(s, t, k, d, d2), sum_kron_width_first(s, t, k, d, d2))
    )


def sum_kron_rows_first(s: int, t: int, k: int, d: int, d2: int) -> int:
    """Multiply-adds a sample for z_i^T x first ([T, D]), then w_i, summed in the product."""
    return k * s * t * d + k * t * d * d2


def sum_kron_width_first(s: int, t: int, k: int, d: int, d2: int) -> int:
    """Multiply-adds a sample for x w_i first ([S, D2]), then z_i^T, summed in the product."""
    return k * s * d * d2 + k * s * t * d2
