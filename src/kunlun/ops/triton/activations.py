"""Device functions of kunlun.ops.activations: float32 in, float32 out, selected at compile time."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from kunlun.ops.triton.tiles import INTERPRETED

RAW = tl.constexpr(0)
GELU = tl.constexpr(1)
GELU_APPROX = tl.constexpr(2)
SILU = tl.constexpr(3)
RELU = tl.constexpr(4)
RELU_SQUARE = tl.constexpr(5)
LEAKY_RELU = tl.constexpr(6)
HARDSWISH = tl.constexpr(7)
FAST_GELU = tl.constexpr(8)
FAST_SILU = tl.constexpr(9)
NUM_CODES = tl.constexpr(10)

_C = tl.constexpr(1.5957691216057308)  # gelu_approx(x) = x * sigmoid(_C * (x + _A * x^3))
_A = tl.constexpr(0.044715)

CODES: dict[str, int] = {
    "raw": RAW.value,
    "gelu": GELU.value,
    "gelu_approx": GELU_APPROX.value,
    "silu": SILU.value,
    "relu": RELU.value,
    "relu_square": RELU_SQUARE.value,
    "leaky_relu": LEAKY_RELU.value,
    "hardswish": HARDSWISH.value,
    "fast_gelu": FAST_GELU.value,
    "fast_silu": FAST_SILU.value,
}
# The interpreter refuses the inline assembly of the fast ones.
_SLOW = {"fast_gelu": "gelu_approx", "fast_silu": "silu"}


def codes(names: Sequence[str]) -> tuple[int, ...]:
    """The code of every name, for ACT of the functions below."""
    return tuple(CODES[_SLOW.get(name, name) if INTERPRETED else name] for name in names)


@triton.jit
def _tanh_approx(x):
    # One special-function instruction with a relative error near 2^-11.
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _gate(x, ACT: tl.constexpr):
    """act(x) / x of the gelu and silu families."""
    if ACT == GELU:
        gate = 0.5 + 0.5 * tl.math.erf(0.7071067811865476 * x)
    elif ACT == GELU_APPROX:
        gate = tl.sigmoid(x * (_C + _C * _A * x * x))
    elif ACT == FAST_GELU:
        gate = 0.5 + 0.5 * _tanh_approx(x * (0.5 * _C + 0.5 * _C * _A * x * x))
    elif ACT == SILU:
        gate = tl.sigmoid(x)
    else:
        gate = 0.5 + 0.5 * _tanh_approx(0.5 * x)
    return gate


@triton.jit
def activate(x, ACT: tl.constexpr):
    """act(x)."""
    if ACT == RAW:
        y = x
    elif ACT == RELU:
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == RELU_SQUARE:
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        y = y * y
    elif ACT == LEAKY_RELU:
        y = tl.where(x > 0, x, 0.01 * x)
    elif ACT == HARDSWISH:
        y = x * (tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) * (1.0 / 6.0))
    else:
        y = x * _gate(x, ACT)
    return y


@triton.jit
def activate_both(x, ACT: tl.constexpr):
    """(act(x), act'(x))."""
    if ACT == RAW:
        y = x
        slope = tl.full(x.shape, 1.0, tl.float32)
    elif ACT == RELU:
        y = activate(x, ACT)
        slope = tl.where(x > 0, 1.0, 0.0)  # 0 at 0, as torch
    elif ACT == RELU_SQUARE:
        positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        y = positive * positive
        slope = 2.0 * positive
    elif ACT == LEAKY_RELU:
        slope = tl.where(x > 0, 1.0, 0.01)
        y = x * slope
    elif ACT == HARDSWISH:
        y = activate(x, ACT)
        slope = tl.where(x <= -3.0, 0.0, tl.where(x < 3.0, x * (1.0 / 3.0) + 0.5, 1.0))
    else:
        gate = _gate(x, ACT)
        y = x * gate
        if ACT == GELU:
            slope = gate + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))
        else:
            # Saturated gates make this product 0 before the cubic's slope grows large.
            rest = y * (1.0 - gate)
            if (ACT == GELU_APPROX) | (ACT == FAST_GELU):
                rest *= _C + 3.0 * _C * _A * tl.minimum(x * x, 1e30)  # finite: 0 * inf is NaN
            slope = gate + rest
    return y, slope


@triton.jit
def activate_head(x, code, ACTS: tl.constexpr):
    """act(x) of a head whose code is one of the bits of ACTS; costs nothing if there is one bit."""
    y = x
    for ACT in tl.static_range(NUM_CODES):
        if ACTS == (1 << ACT) or ((ACTS >> ACT) & 1 == 1 and code == ACT):
            y = activate(x, ACT)
    return y


@triton.jit
def activate_head_both(x, code, ACTS: tl.constexpr):
    """(act(x), act'(x)) in the same way."""
    y, slope = x, x
    for ACT in tl.static_range(NUM_CODES):
        if ACTS == (1 << ACT) or ((ACTS >> ACT) & 1 == 1 and code == ACT):
            y, slope = activate_both(x, ACT)
    return y, slope
