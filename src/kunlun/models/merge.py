"""For models that know one sequence: all event types merged by time, and rows appended to it.

Shapes: B rows, L packed events of all types, N appended rows, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kunlun.features.embedding import TABLE_STD
from kunlun.models.events import AGE_BUCKETS, Events, add_ages, expand, merge_by_time, newest
from kunlun.ops.jagged import Jagged


class MergedHistory(nn.Module):
    """One sequence a row, oldest first; every event knows its type and, if asked for, its age.

    max_len: the longest it can get; `history` cuts it to the newest events of all types together.
    """

    def __init__(self, caps: dict[str, int], dim: int, history: int | None, *, ages: bool) -> None:
        """caps: event type -> the longest history of the data."""
        super().__init__()
        longest = max(sum(caps.values()), 1)
        self.max_len = longest if history is None else min(history, longest)
        self.kind = nn.Parameter(torch.randn(len(caps), dim) * TABLE_STD)
        self.age = (
            nn.Parameter(torch.randn(AGE_BUCKETS, dim) * TABLE_STD) if ages and caps else None
        )

    def forward(
        self, tokens: Tensor, events: Events, request: Tensor | None
    ) -> tuple[Jagged, Tensor]:
        """tokens [B, N, D], for their number only -> (Jagged [L, d], age float64 [L] seconds)."""
        if not events:
            offsets = torch.zeros(tokens.shape[0] + 1, dtype=torch.int64, device=tokens.device)
            nothing = tokens.new_zeros(0, self.kind.shape[1])
            return Jagged(nothing, offsets, self.max_len), nothing.new_zeros(0, dtype=torch.float64)
        s, age = newest(*merge_by_time(events, self.kind), self.max_len)
        if self.age is not None:
            s = add_ages(s, age, self.age)
        return expand({"merged": (s, age)}, request)["merged"]

    def lengths(self, lengths: dict[str, Tensor], n: int) -> Tensor:
        """Lengths by event type, int64 [n] each -> of the merged sequences, int64 [n]."""
        total = torch.stack(list(lengths.values())).sum(0) if lengths else torch.zeros(n).long()
        return total.clamp(max=self.max_len)


class Appended:
    """Layout of n packed sequences with the same number of rows behind each.

    offsets: int64 [n + 1] of the longer sequences; events int64 [L] and rows int64 [n * N]: the
    places of both in them.
    """

    def __init__(self, s: Jagged, count: int) -> None:
        place = torch.arange(s.values.shape[0], device=s.offsets.device)
        shift = torch.arange(s.n + 1, device=s.offsets.device) * count
        self.count, self.max_len = count, s.max_len + count
        self.offsets = s.offsets.long() + shift
        self.events = place + s.segments * count
        last = self.offsets[1:, None] - count
        self.rows = (last + torch.arange(count, device=last.device)).flatten()
        places = torch.cat([self.events, self.rows])
        origin = torch.arange(places.shape[0], device=places.device)
        self.source = torch.empty_like(places).scatter(0, places, origin)

    def join(self, events: Tensor, rows: Tensor) -> Tensor:
        """events [L, ...], rows [n, N, ...] -> [L + n * N, ...]."""
        return torch.cat([events, rows.flatten(0, 1)]).index_select(0, self.source)

    def rows_of(self, joined: Tensor) -> Tensor:
        """[L + n * N, ...] -> the appended rows, [n, N, ...]."""
        rows = joined.index_select(0, self.rows)
        return rows.view(-1, self.count, *rows.shape[1:])
