"""For models that know no sequence: the history of each event type as one vector a row.

Shapes: B rows, N context tokens, E event types, L packed events of one type, d width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunlun.features.embedding import TABLE_STD
from kunlun.layers.mlp import MLP
from kunlun.layers.norm import layer_norm
from kunlun.models.events import AGE_BUCKETS, Events, expand, level, with_ages
from kunlun.models.ranker import Row, size
from kunlun.ops import gelu_approx
from kunlun.ops.jagged import Jagged
from kunlun.ops.time_buckets import time_buckets


def sum_of_events(s: Jagged, values: Tensor) -> Tensor:
    """values [L, d] of the events of s -> their sums over sqrt(max_len), [n, d].

    A constant, so that counts stay, and long histories of unrelated events are of unit size.
    """
    total = values.new_zeros(s.n, values.shape[1]).index_add(0, s.segments, values)
    return total / math.sqrt(s.max_len)


class TimedSums(nn.Module):
    """u_e = sum_j w_e(age_j) * x_j / sqrt(cap_e), behind the context tokens.

    w [E, AGE_BUCKETS, d] starts at one: every channel learns how fast it forgets.
    tokens [B, N, d], events of width d -> [B, N + E, d], leveled.
    """

    def __init__(self, kinds: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(kinds, AGE_BUCKETS, dim)) if kinds else None

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None) -> Tensor:
        """See the class."""
        sums, weights = [], () if self.weight is None else self.weight
        for (s, age), weight in zip(events.values(), weights, strict=True):
            timed = s.values * weight.index_select(0, time_buckets(age, AGE_BUCKETS))
            sums.append(sum_of_events(s, timed.to(s.values.dtype)))
        if request is not None:
            sums = [u.index_select(0, request) for u in sums]
        return level(torch.cat([tokens, *(u.unsqueeze(1) for u in sums)], dim=1))


class TargetAttention(nn.Module):
    """DIN's activation unit of one event type: events [L, d], candidate [B, n_t, d] -> [B, d].

        t = LN(W flatten(candidate)),  h = LN(event)
        a = MLP([h, t, h - t, h * t])          no softmax: the sum keeps how strong an interest is
        u = sum_j a_j h_j / sqrt(cap)

    The first layer of the MLP is computed as (W_h + W_d) h + W_p (h * t) for each event and
    (W_t - W_d) t once a row: the same sum with half of the products.
    FLOPs: 2 B d (n_t d + A) + 2 L A (2 d + 1) for a hidden width A.
    """

    def __init__(self, targets: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.target = nn.Linear(targets * dim, dim, bias=False)
        self.unit = MLP(4 * dim, hidden, 1)

    def forward(self, s: Jagged, candidate: Tensor) -> Tensor:
        """See the class."""
        segments = s.segments
        h, t = layer_norm(s.values), layer_norm(self.target(candidate.flatten(1)))
        of_h, of_t, of_difference, of_product = self.unit.up.weight.chunk(4, dim=1)
        of_row = F.linear(t, of_t - of_difference, self.unit.up.bias)
        product = h * t.index_select(0, segments)
        hidden = F.linear(h, of_h + of_difference) + F.linear(product, of_product)
        weight = self.unit.down(gelu_approx(hidden + of_row.index_select(0, segments)))
        return sum_of_events(s, (weight * h).to(h.dtype))

    def flops(self, rows: int, events: int) -> int:
        """Forward FLOPs for `rows` samples with `events` events in all."""
        dim, hidden = self.target.out_features, self.unit.up.out_features
        by_row = self.target.weight.numel() + dim * hidden
        return 2 * rows * by_row + 2 * events * hidden * (2 * dim + 1)


class Interests(nn.Module):
    """What a row's candidate finds in each history; every event knows its age.

    tokens [B, N, d] and events of width d -> [B, E d].
    """

    candidate: Tensor  # int64, the candidate's places among the tokens

    def __init__(self, kinds: list[str], dim: int, hidden: int, candidate: list[int]) -> None:
        super().__init__()
        self.register_buffer("candidate", torch.tensor(candidate), persistent=False)
        self.attention = nn.ModuleDict(
            {kind: TargetAttention(len(candidate), dim, hidden) for kind in kinds}
        )
        self.age = nn.Parameter(torch.randn(AGE_BUCKETS, dim) * TABLE_STD) if kinds else None

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None) -> Tensor:
        """See the class."""
        candidate = tokens.index_select(1, self.candidate)
        found = [tokens[:, 0, :0]]  # so that there is something to join without event types
        known = events if self.age is None else with_ages(events, self.age)
        for kind, (s, _) in expand(known, request).items():
            found.append(self.attention[kind](s, candidate))
        return torch.cat(found, dim=1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """One row a part; lengths: event type -> int64 [n]."""
        rows = [] if self.age is None else [Row("ages", self.age.numel(), 0.0)]
        for kind, attention in self.attention.items():
            flops = attention.flops(n, int(lengths[kind].sum())) / n  # type: ignore[operator]
            rows.append(Row(f"attention.{kind}", size(attention), flops))
        return rows
