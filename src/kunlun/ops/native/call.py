"""What the calls of the library share: how a tensor is handed over, and what a status means."""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.errors import BackendError
from kunlun.ops import native
from kunlun.ops.checks import read_offsets


def call(name: str, packed: bytes) -> int:
    """The status of the function `name` over its packed arguments."""
    library = native.load().library
    assert library is not None
    return library.call[name](library.isa, packed)


def check(status: int, offsets: list[tuple[str, Tensor, int]]) -> None:
    """Raises what a status is about: `offsets` are (name, values, packed rows)."""
    if status == 0:
        return
    for name, values, rows in offsets:
        read_offsets(name, values, rows)  # says what is wrong with them
    raise BackendError("native: out of memory for a sample; use 'portable'")


def rows(x: Tensor) -> Tensor:
    """[..., width] with channels side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def addresses(tensors: list[Tensor | None]) -> list[int]:
    """Address, row stride and head stride (rows without heads: any) of each, zeros for None."""
    flat = []
    for x in tensors:
        flat += [0, 0, 0] if x is None else [x.data_ptr(), x.stride(0), x.stride(1)]
    return flat


def int64(offsets: Tensor) -> Tensor:
    """Offsets as the library reads them."""
    return offsets.to(torch.int64).contiguous()
