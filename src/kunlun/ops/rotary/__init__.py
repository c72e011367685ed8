"""Rotary encoding: every pair of channels is turned by an angle of its row."""

from __future__ import annotations

from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_rows
from kunlun.ops.rotary.op import rotary_op


def rotary(x: Tensor, angle: Tensor) -> Tensor:
    """Turns channels (2i, 2i + 1) of each row by angle[i], alike in every head.

    The scalar product of two rotated rows depends on the difference of their angles only, which
    is how queries and keys learn about positions or times (rotary temporal embedding, paper
    4.2; the angles are the caller's).

    Cost: 3 * L * H * D element-wise operations, not counted as FLOPs; reads x and writes the
    result once, 2 * L * H * D elements.

    Args:
        x: [L, H, D] packed rows, D even.
        angle: [L, D/2] in radians; keep it float32 also where x is bfloat16, for large angles
            lose all meaning in half precision.

    Returns: [L, H, D] in x's dtype, computed in float32 (float64 for float64).

    Raises:
        ShapeError: an argument that does not fit, by name.

    Example:
        >>> import math, torch
        >>> from kunlun.ops import rotary
        >>> rotary(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[math.pi / 2]])).round()
        tensor([[[-0., 1.]]])
    """
    check_rows("x", x)
    check_rows("angle", angle, "L, D/2")
    if angle.device != x.device:
        raise ShapeError(f"angle: on {angle.device}, but x is on {x.device}")
    if x.shape[2] % 2:
        raise ShapeError(f"x: width {x.shape[2]} is odd; rotation needs pairs")
    if angle.shape != (x.shape[0], x.shape[2] // 2):
        raise ShapeError(
            f"angle: expected [{x.shape[0]}, {x.shape[2] // 2}], got shape {list(angle.shape)}"
        )
    out: Tensor = rotary_op(x, angle)
    return out
