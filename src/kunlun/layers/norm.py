"""Norms without learned scale, as in the production kernels (affine did not pay there).

Under autocast results come in its dtype: matrix products read them, which would cast them anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun import ops
from kunlun.ops import add_rms_norm

__all__ = ["add_rms_norm", "layer_norm", "product_dtype", "rms_norm"]


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product takes x here: autocast's, or its own.

    Autocast leaves float64 alone, and asking about a device it does not know (meta) raises.
    """
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, no affine; any [..., D]."""
    return ops.layer_norm(x, dtype=product_dtype(x))


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last axis, no affine; any [..., D]."""
    return ops.rms_norm(x, dtype=product_dtype(x))
