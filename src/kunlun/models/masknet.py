"""InterFormer's way to one sequence: equally long ones side by side, merged by MaskNet.

Shapes: n sequences, E event types, L longest histories packed, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kunlun.errors import ConfigError
from kunlun.features.embedding import TABLE_STD
from kunlun.layers.mlp import MLP
from kunlun.layers.norm import layer_norm
from kunlun.models.events import AGE_BUCKETS, Events, expand, newest, with_ages
from kunlun.ops.jagged import Jagged


class MaskedMerge(nn.Module):
    """S = MLP_lce(Z * MLP_mask(Z)), Z = LN([S_1 | .. | S_E]) with the newest events side by side.

    Every event knows its age; `history` cuts each type to its newest events.
    A merged sequence is as long as the longest of its types; where another has no event its
    channels are zero. FLOPs: 2 L (2 (E D)^2 + 2 E D D) with hidden layers as wide as their results.
    Raises ConfigError unless all caps are equal.
    """

    def __init__(self, caps: dict[str, int], dim: int, history: int | None = None) -> None:
        """caps: event type -> the longest history of the data."""
        super().__init__()
        if len(set(caps.values())) != 1:
            raise ConfigError(
                f"model.merge: masknet needs event types of one max_len, these have {caps}; "
                "use 'time'"
            )
        longest = next(iter(caps.values()))
        self.max_len = longest if history is None else min(history, longest)
        wide = len(caps) * dim
        self.mask = MLP(wide, wide, wide)
        self.lce = MLP(wide, dim, dim)
        self.age = nn.Parameter(torch.randn(AGE_BUCKETS, dim) * TABLE_STD)

    def forward(
        self, tokens: Tensor, events: Events, request: Tensor | None
    ) -> tuple[Jagged, Tensor]:
        """events of width D -> (Jagged [L, D], age of the newest event at each place [L])."""
        kept = {kind: newest(s, age, self.max_len) for kind, (s, age) in events.items()}
        s, age = side_by_side(with_ages(kept, self.age), self.max_len)
        z = layer_norm(s.values)
        merged = s.with_values(self.lce(z * self.mask(z)).to(s.values.dtype))
        return expand({"merged": (merged, age)}, request)["merged"]

    def lengths(self, lengths: dict[str, Tensor], n: int) -> Tensor:
        """Lengths by event type, int64 [n] each -> of the merged sequences, int64 [n]."""
        return torch.stack(list(lengths.values())).amax(0).clamp(max=self.max_len)

    def flops(self, events: int) -> int:
        """Forward FLOPs for `events` merged events."""
        return self.mask.flops(events) + self.lce.flops(events)


def side_by_side(events: Events, max_len: int) -> tuple[Jagged, Tensor]:
    """The newest events of all types at the same place: (Jagged [L, E D], age [L])."""
    sequences = [s for s, _ in events.values()]
    lengths = torch.stack([s.lengths.long() for s in sequences]).amax(0)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    # How many places there are depends on the batch: read from the device. item() can be exported,
    # int() cannot; torch.compile makes two graphs of it.
    total: Any = offsets[-1].item()
    parts, ages = [], []
    for s, age in events.values():
        place = torch.arange(s.values.shape[0], device=age.device)
        place = place + (offsets[1:] - s.offsets.long()[1:])[s.segments]
        parts.append(s.values.new_zeros(total, s.values.shape[1]).index_copy(0, place, s.values))
        ages.append(age.new_full((total,), torch.inf).index_copy(0, place, age))
    return Jagged(torch.cat(parts, dim=1), offsets, max_len), torch.stack(ages).amin(0)
