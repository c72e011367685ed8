"""tanh-GELU of every element, for the layers' own perceptrons."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import FLOATS
from kunlun.ops.dispatch import choose
from kunlun.ops.gelu.op import gelu_approx_op


def gelu_approx(x: Tensor, *, backend: str | None = None) -> Tensor:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2: torch's gelu with approximate="tanh".

    Cost: reads x and writes the result once each way; element-wise, not counted as FLOPs.

    Args:
        x: any shape and strides; float32, bfloat16, float16 or float64.
        backend: force one; None lets kunlun.ops.choose decide.

    Returns: the same shape and dtype, contiguous on the native path; computed in float32 (float64
        for float64). Infinity gives itself; -inf gives nan on the portable path (torch multiplies
        it by 0) and a number next to 0 on the native one.

    Raises:
        ShapeError: x is not of floating point.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import torch
        >>> from kunlun.ops import gelu_approx
        >>> gelu_approx(torch.tensor([-9.0, 0.0, 9.0])).round()
        tensor([-0., 0., 9.])
    """
    if x.dtype not in FLOATS:
        raise ShapeError(f"x: expected a floating-point dtype, got {x.dtype}")
    if choose("gelu_approx", device=x.device, dtype=x.dtype, backend=backend).backend != "native":
        return F.gelu(x, approximate="tanh")
    out: Tensor = gelu_approx_op(x, backend or "")
    return out
