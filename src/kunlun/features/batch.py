"""One batch of samples, as the loader makes it and every model takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kunlun.ops.jagged import Jagged

__all__ = ["Batch", "EventSequence", "Jagged"]


@dataclass
class EventSequence:
    """The histories of one event type, oldest first; n = requests of the batch.

    ids: name -> int64 [L]; numeric: float32 [L, F_e]; timestamps: int64 [L] ms;
    offsets: int64 [n + 1]; max_len: the configured cap.
    """

    ids: dict[str, Tensor]
    numeric: Tensor
    timestamps: Tensor
    offsets: Tensor
    max_len: int


@dataclass
class Batch:
    """B rows (samples) over R <= B requests.

    categorical: name -> int64 [B]. multi: name -> Jagged int64 [L]. numeric: float32 [B, F].
    events: event type -> EventSequence over R requests.
    request: int64 [B], the request of each row, or None: one request a row (R = B).
    request_time: int64 [R] ms. labels: float32 [B, tasks], NaN = unknown. weights: float32 [B].
    group: int64 [B], the key of GAUC.
    """

    categorical: dict[str, Tensor]
    multi: dict[str, Jagged]
    numeric: Tensor
    events: dict[str, EventSequence]
    request: Tensor | None
    request_time: Tensor
    labels: Tensor
    weights: Tensor
    group: Tensor

    def __len__(self) -> int:
        return int(self.numeric.shape[0])

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """Copy on another device."""
        moved: Batch = _map(self, lambda t: t.to(device, non_blocking=non_blocking))
        return moved

    def pin_memory(self) -> Batch:
        """Copy in page-locked host memory, for asynchronous transfer."""
        pinned: Batch = _map(self, lambda t: t.pin_memory())
        return pinned


def _map(value: Any, function: Any) -> Any:
    """Apply `function` to every tensor inside a value made of the types above."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(entry, function) for key, entry in value.items()}
    if isinstance(value, (Batch, EventSequence, Jagged)):
        return type(value)(**{k: _map(v, function) for k, v in vars(value).items()})
    return value
