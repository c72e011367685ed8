"""Element-wise activations of GDPA, every one 0 at 0 (so that absent keys add nothing).

Each has its formula, differentiable and out of place, and two in-place halves for the portable
path, which spends most of its time here:
    forward_(x)      -> act(x), in x's memory
    backward_(x, g)  -> act(x), and g becomes g * act'(x); recomputes what the two share once

fast_gelu and fast_silu name the same functions as gelu_approx and silu; a GPU kernel may use
approximate instructions for them. relu's slope at 0 is torch's, 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ShapeError

_aten = torch.ops.aten
_C = 2 * math.sqrt(2 / math.pi)  # gelu_approx(x) = x * sigmoid(_C * (x + _A * x^3))
_A = 0.044715


class Activation(NamedTuple):
    """One activation; see the module's docstring."""

    formula: Callable[[Tensor], Tensor]
    forward_: Callable[[Tensor], Tensor]
    backward_: Callable[[Tensor, Tensor], Tensor]


def _raw(x: Tensor) -> Tensor:
    return x


def _raw_backward(x: Tensor, g: Tensor) -> Tensor:
    return x


def _gelu_forward(x: Tensor) -> Tensor:
    _aten.gelu.out(x, out=x)
    return x


def _gelu_backward(x: Tensor, g: Tensor) -> Tensor:
    _aten.gelu_backward.grad_input(g, x, grad_input=g)
    _aten.gelu.out(x, out=x)
    return x


def _gelu_approx(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_approx_slope(x: Tensor) -> Tensor:
    # _C * (1 + _A x^2), in one pass over x: which are what the portable path waits for.
    # Torch's fused tanh-GELU takes twice as long as all passes together.
    return torch.addcmul(x.new_full((), _C), x, x, value=_C * _A)


def _gelu_approx_forward(x: Tensor) -> Tensor:
    return x.mul_(_gelu_approx_slope(x).mul_(x).sigmoid_())


def _gelu_approx_backward(x: Tensor, g: Tensor) -> Tensor:
    # Finite even where x^2 is not: the slope meets a zero there.
    slope = _gelu_approx_slope(x).clamp_(max=1e30)
    gate = (slope * x).sigmoid_()
    x.mul_(gate)
    # act' = gate + act * (1 - gate) * d/dx of the sigmoid's argument, 3 * slope - 2 * _C
    torch.add(slope.new_full((), -2 * _C), slope, alpha=3, out=slope)
    rest = torch.addcmul(x, x, gate, value=-1)
    g.mul_(gate.addcmul_(rest, slope))
    return x


def _silu_forward(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


def _silu_backward(x: Tensor, g: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    x.mul_(gate)
    rest = torch.addcmul(x, x, gate, value=-1)
    g.mul_(gate.add_(rest))
    return x


def _relu_backward(x: Tensor, g: Tensor) -> Tensor:
    _aten.threshold_backward.grad_input(g, x, 0, grad_input=g)
    return x.relu_()


def _relu_square(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _relu_square_forward(x: Tensor) -> Tensor:
    return x.relu_().square_()


def _relu_square_backward(x: Tensor, g: Tensor) -> Tensor:
    g.mul_(x.relu_()).mul_(2)
    return x.square_()


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


def _leaky_relu_forward(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01, inplace=True)


def _leaky_relu_backward(x: Tensor, g: Tensor) -> Tensor:
    _aten.leaky_relu_backward.grad_input(g, x, 0.01, False, grad_input=g)
    return _leaky_relu_forward(x)


def _hardswish_forward(x: Tensor) -> Tensor:
    return F.hardswish(x, inplace=True)


def _hardswish_backward(x: Tensor, g: Tensor) -> Tensor:
    g.copy_(_aten.hardswish_backward(g, x))
    return _hardswish_forward(x)


_GELU_APPROX = Activation(_gelu_approx, _gelu_approx_forward, _gelu_approx_backward)
_SILU = Activation(F.silu, _silu_forward, _silu_backward)

ACTIVATIONS: dict[str, Activation] = {
    "raw": Activation(_raw, _raw, _raw_backward),  # x
    "gelu": Activation(F.gelu, _gelu_forward, _gelu_backward),  # x Phi(x), Phi by erf
    "gelu_approx": _GELU_APPROX,  # x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), the tanh form
    "fast_gelu": _GELU_APPROX,
    "silu": _SILU,  # x sigmoid(x)
    "fast_silu": _SILU,
    "relu": Activation(F.relu, torch.relu_, _relu_backward),  # max(x, 0)
    "relu_square": Activation(_relu_square, _relu_square_forward, _relu_square_backward),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_forward, _leaky_relu_backward),
    "hardswish": Activation(F.hardswish, _hardswish_forward, _hardswish_backward),
}


def activation_names(activation: str | Sequence[str], heads: int) -> list[str]:
    """One checked name per head from one name or a list of `heads` names."""
    names = [activation] * heads if isinstance(activation, str) else list(activation)
    if len(names) != heads:
        raise ShapeError(f"activation: {len(names)} names for {heads} heads; give one a head")
    for name in names:
        if name not in ACTIVATIONS:
            raise ShapeError(f"activation: '{name}' is not one of {', '.join(ACTIVATIONS)}")
    return names
