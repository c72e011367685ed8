"""Argument checks the operators share. Each message names the argument it is about."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from kunlun.errors import ShapeError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_rows(name: str, x: Tensor, layout: str = "L, H, D") -> None:
    """x is a floating-point tensor with the axes of `layout`, heads H and channels D not empty."""
    axes = layout.split(", ")
    if x.dim() != len(axes):
        raise ShapeError(f"{name}: expected [{layout}], got shape {list(x.shape)}")
    for axis, size in zip(axes, x.shape, strict=True):
        if axis in ("H", "D") and size == 0:
            raise ShapeError(
                f"{name}: expected [{layout}] with {axis} at least 1, got shape {list(x.shape)}"
            )
    if x.dtype not in FLOATS:
        raise ShapeError(f"{name}: expected a floating-point dtype, got {x.dtype}")


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """x lives on the device of `other` and has its dtype."""
    if x.dtype != other.dtype:
        raise ShapeError(f"{name}: dtype {x.dtype} differs from {other_name}'s {other.dtype}")
    if x.device != other.device:
        raise ShapeError(f"{name}: on {x.device}, but {other_name} is on {other.device}")


def check_kv(k: Tensor, v: Tensor, heads: int, width: int, owner: str) -> None:
    """k and v are alike and fit an operand `owner` of `heads` heads and `width` channels."""
    check_rows("k", k)
    check_rows("v", v)
    if v.shape != k.shape:
        raise ShapeError(f"v: shape {list(v.shape)} differs from k's {list(k.shape)}")
    if k.shape[2] != width:
        raise ShapeError(f"k: width {k.shape[2]} differs from {owner}'s {width}")
    if heads % k.shape[1]:
        raise ShapeError(f"k: {heads} heads of {owner} are no multiple of its {k.shape[1]} heads")


def check_offsets(name: str, offsets: Tensor, rows_name: str, rows: Tensor) -> None:
    """What can be seen without reading values: int32 or int64 [n + 1] on the device of `rows`."""
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ShapeError(f"{name}: expected [n + 1], got shape {list(offsets.shape)}")
    if offsets.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"{name}: expected int32 or int64, got {offsets.dtype}")
    if offsets.device != rows.device:
        raise ShapeError(f"{name}: on {offsets.device}, but {rows_name} is on {rows.device}")


def read_offsets(name: str, offsets: Tensor, rows: int) -> tuple[int, ...]:
    """The values, checked: first 0, non-decreasing, last the number of packed rows.

    Reads the device; the portable path needs the lengths on the host anyway.
    """
    values = tuple(offsets.tolist())
    if values[0] != 0:
        raise ShapeError(f"{name}: starts with {values[0]}, expected 0")
    if values[-1] != rows:
        raise ShapeError(f"{name}: ends with {values[-1]}, but there are {rows} packed rows")
    if any(later < earlier for earlier, later in pairwise(values)):  # on the host: one read only
        raise ShapeError(f"{name}: decreases; expected running sums of lengths")
    return values


def known_lengths(offsets: Tensor) -> list[int] | None:
    """Lengths where offsets has values to read; None on meta and fake tensors."""
    if offsets.is_meta or isinstance(offsets, FakeTensor):
        return None
    return offsets.diff().tolist()
