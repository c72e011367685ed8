"""Norms of rows without learned scale, and the residual sum that ends GDPA's sandwich.

Small inputs go the same way as large ones, although torch's own functions take less time there:
the two round differently, so a row's bits would depend on how many rows stand beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import FLOATS, check_like
from kunlun.ops.dispatch import choose
from kunlun.ops.norms import portable
from kunlun.ops.norms.op import add_rms_norm_op, row_norm_op


def layer_norm(
    x: Tensor, *, dtype: torch.dtype | None = None, backend: str | None = None
) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) of every row, without affine.

    Cost: reads x and writes the result once each way; element-wise, not counted as FLOPs. The
    native path keeps its result and one number a row for the backward, not x.

    Args:
        x: [..., D], any strides.
        dtype: of the result; None means x's. Half precision for a matrix product behind it costs
            no pass of its own.
        backend: force one; None lets kunlun.ops.choose decide.

    Returns: [..., D], computed in float32 (float64 for float64).

    Raises:
        ShapeError: an argument that does not fit, by name.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import torch
        >>> from kunlun.ops import layer_norm
        >>> layer_norm(torch.tensor([[1.0, 3.0]])).round()
        tensor([[-1.,  1.]])
    """
    return _normalize("layer_norm", x, dtype, backend)


def rms_norm(x: Tensor, *, dtype: torch.dtype | None = None, backend: str | None = None) -> Tensor:
    """x / sqrt(mean of x^2 + 1e-5) of every row, without affine; arguments as in layer_norm.

    Example:
        >>> import torch
        >>> from kunlun.ops import rms_norm
        >>> rms_norm(torch.tensor([[3.0, -3.0]])).round()
        tensor([[ 1., -1.]])
    """
    return _normalize("rms_norm", x, dtype, backend)


def add_rms_norm(s: Tensor, u: Tensor, y: Tensor, *, backend: str | None = None) -> Tensor:
    """s + rms_norm(u + y): the tail of the production sandwich around GDPA.

    u is GDPA's query and y its result.

    Cost: reads all three and writes the result once; the backward reads three rows and writes one.

    Args:
        s: [..., D], the residual stream.
        u, y: [..., D] of one dtype, which may be a narrower one than s's.
        backend: force one; None lets kunlun.ops.choose decide.

    Returns: [..., D] in s's dtype.

    Raises: as layer_norm.

    Example:
        >>> import torch
        >>> from kunlun.ops import add_rms_norm
        >>> add_rms_norm(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2)).round()
        tensor([[2., 2.]])
    """
    _check("s", s)
    _check("u", u)
    check_like("y", y, "u", u)
    for name, x in (("u", u), ("y", y)):
        if x.shape != s.shape:
            raise ShapeError(f"{name}: shape {list(x.shape)} differs from s's {list(s.shape)}")
        if x.device != s.device:
            raise ShapeError(f"{name}: on {x.device}, but s is on {s.device}")
    if not _native("add_rms_norm", s, u.dtype, backend):
        return portable.add_rms_norm(s, u, y)
    out: Tensor = add_rms_norm_op(_rows(s), _rows(u), _rows(y), backend or "")[0]
    return out.view(s.shape)


def _normalize(name: str, x: Tensor, dtype: torch.dtype | None, backend: str | None) -> Tensor:
    _check("x", x)
    dtype = dtype or x.dtype
    if dtype not in FLOATS:
        raise ShapeError(f"dtype: expected a floating-point dtype, got {dtype}")
    centered = name == "layer_norm"
    if not _native(name, x, dtype, backend):
        return portable.normalize(x, centered, dtype)
    out: Tensor = row_norm_op(_rows(x), centered, dtype, backend or "")[0]
    return out.view(x.shape)


def _native(operator: str, x: Tensor, other: torch.dtype, backend: str | None) -> bool:
    """Whether the registered operator runs; torch's own functions otherwise, for all to compile."""
    dtype = x.dtype if x.dtype not in (torch.float32, torch.bfloat16) else other
    chosen = choose(operator, device=x.device, dtype=dtype, backend=backend)
    return chosen.backend == "native"


def _check(name: str, x: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ShapeError(f"{name}: expected [..., D], got shape {list(x.shape)}")
    if x.dtype not in FLOATS:
        raise ShapeError(f"{name}: expected a floating-point dtype, got {x.dtype}")


def _rows(x: Tensor) -> Tensor:
    """[..., D] -> [rows, D]."""
    return x[None] if x.dim() == 1 else x.flatten(0, -2)
