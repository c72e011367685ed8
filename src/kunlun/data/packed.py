"""A batch in one piece of memory, to cross from a worker process in one message.

A batch has dozens of tensors, and each would travel through a shared-memory file of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kunlun.features.batch import Batch, EventSequence, Jagged

ALIGN = 64  # bytes


class _Slot(NamedTuple):
    start: int
    dtype: str
    shape: tuple[int, ...]


class Packed(NamedTuple):
    """memory: uint8 [bytes]; layout: the batch with a slot in the place of each tensor."""

    memory: Tensor
    layout: Any


def pack(batch: Batch) -> Packed:
    """A CPU batch in one tensor."""
    tensors: list[Tensor] = []
    end = 0

    def place(tensor: Tensor) -> _Slot:
        nonlocal end
        tensors.append(tensor)
        slot = _Slot(end, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        end += -(-tensor.nbytes // ALIGN) * ALIGN
        return slot

    layout = _walk(batch, Tensor, place)
    # Shared from the start: the queue between processes then sends a handle, not a copy.
    shared = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))
    memory = shared.numpy()
    start = 0
    for tensor in tensors:
        data = tensor.contiguous().numpy().reshape(-1).view(np.uint8)
        memory[start : start + data.nbytes] = data
        start += -(-data.nbytes // ALIGN) * ALIGN
    return Packed(shared, layout)


def unpack(packed: Packed) -> Batch:
    """Inverse of pack; the tensors are views of the one memory."""

    def view(slot: _Slot) -> Tensor:
        dtype = getattr(torch, slot.dtype)
        size = int(np.prod(slot.shape)) * dtype.itemsize
        return packed.memory[slot.start : slot.start + size].view(dtype).view(slot.shape)

    batch: Batch = _walk(packed.layout, _Slot, view)
    return batch


def _walk(value: Any, leaf: type, function: Any) -> Any:
    """The same structure with `function` applied to every `leaf`."""
    if isinstance(value, leaf):
        return function(value)
    if isinstance(value, dict):
        return {key: _walk(entry, leaf, function) for key, entry in value.items()}
    if isinstance(value, (Batch, EventSequence, Jagged)):
        return type(value)(**{k: _walk(v, leaf, function) for k, v in vars(value).items()})
    return value
