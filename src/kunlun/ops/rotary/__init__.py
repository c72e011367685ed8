"""Rotary encoding: every pair of channels is turned by an angle of its row."""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_rows
from kunlun.ops.dispatch import choose
from kunlun.ops.rotary.op import rotary_op


def rotary(x: Tensor, angle: Tensor, *, backend: str | None = None) -> Tensor:
    """Turns channels (2i, 2i + 1) of each row by angle[i], alike in every head.

    The scalar product of two rotated rows depends on the difference of their angles only, which
    is how queries and keys learn about positions or times (rotary temporal embedding, paper
    4.2; the angles are the caller's).

    Cost: 3 * L * H * D element-wise operations, not counted as FLOPs; reads x and writes the
    result once, 2 * L * H * D elements.

    Args:
        x: [L, H, D] packed rows, D even, any strides.
        angle: [L, D/2] in radians; keep it float32 also where x is bfloat16, for large angles
            lose all meaning in half precision.
        backend: force one; None lets kunlun.ops.choose decide.

    Returns: [L, H, D] in x's dtype, computed in float32 (float64 for float64).

    Raises:
        ShapeError: an argument that does not fit, by name.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import math, torch
        >>> from kunlun.ops import rotary
        >>> rotary(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[math.pi / 2]])).round()
        tensor([[[-0., 1.]]])
    """
    check_rows("x", x)
    return _turn(x[:, None], angle, 1, backend)[0]


def rotary_split(
    x: Tensor, angle: Tensor, *, turned: int, backend: str | None = None
) -> list[Tensor]:
    """The parts of a fused projection, the first `turned` of them rotated as by `rotary`.

    For q, k, v out of one product: one pass forward, and one backward that writes the gradient of
    the fused rows at once, where taking views would zero, copy and add it part by part.

    Args:
        x: [L, P, H, D], P parts; D even, any strides.
        angle: [L, D/2] in radians, the same for all turned parts.
        turned: how many parts to rotate, from the first.
        backend: force one; None lets kunlun.ops.choose decide.

    Returns: P contiguous tensors [L, H, D] in x's dtype.

    Raises: as rotary.

    Example:
        >>> import torch
        >>> from kunlun.ops import rotary_split
        >>> [p.shape[1] for p in rotary_split(torch.ones(5, 3, 2, 4), torch.ones(5, 2), turned=2)]
        [2, 2, 2]
    """
    check_rows("x", x, "L, P, H, D")
    if not 0 < turned <= x.shape[1]:
        raise ShapeError(f"turned: {turned} of {x.shape[1]} parts")
    return _turn(x, angle, turned, backend)


def _turn(x: Tensor, angle: Tensor, turned: int, backend: str | None) -> list[Tensor]:
    check_rows("angle", angle, "L, D/2")
    if angle.device != x.device:
        raise ShapeError(f"angle: on {angle.device}, but x is on {x.device}")
    length, width = x.shape[0], x.shape[3]
    if width % 2:
        raise ShapeError(f"x: width {width} is odd; rotation needs pairs")
    if angle.shape != (length, width // 2):
        raise ShapeError(f"angle: expected [{length}, {width // 2}], got shape {list(angle.shape)}")
    dtype = angle.dtype if angle.dtype == torch.float64 else x.dtype
    choose("rotary", device=x.device, dtype=dtype, backend=backend)
    outs: list[Tensor] = rotary_op(x, angle, turned, backend or "")
    return outs
