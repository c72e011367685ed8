"""DIN (arXiv 1706.06978): every event is weighed by how it fits the candidate, then all are summed.

t_e   = LN(W_e flatten(candidate's tokens)),  h = LN(event)
a_j   = MLP_e([h_j, t, h_j - t, h_j * t])     no softmax: the sum keeps how strong an interest is
u_e   = sum_j a_j h_j / sqrt(cap_e)           a constant, so that long histories stay of unit size
logit = MLP([tokens | u_1 .. u_E])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.features.schema import Schema
from kunlun.layers.mlp import MLP
from kunlun.layers.norm import layer_norm
from kunlun.models.events import Events, expand, level
from kunlun.models.ranker import Backbone, Ranker, Row, candidate_tokens, size
from kunlun.ops import gelu_approx
from kunlun.ops.jagged import Jagged


@dataclass(frozen=True, kw_only=True)
class DINConfig(Config):
    """Scales by `dim` and `attention`, then `hidden`; it has no depth over the events."""

    dim: int = 64
    attention: int = 64  # hidden width of the activation unit
    hidden: int = 256  # of the network behind it
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, attention=self.attention, hidden=self.hidden)
        at_least_one("", head_hidden=self.head_hidden)


class TargetAttention(nn.Module):
    """The activation unit of one event type: events [L, d], candidate [B, n_t, d] -> [B, d].

    The first layer of MLP([h, t, h - t, h * t]) is computed as (W_h + W_d) h + W_p (h * t) for
    each event and (W_t - W_d) t once a row: the same sum with half of the products.
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
        total = h.new_zeros(s.n, h.shape[1]).index_add(0, segments, (weight * h).to(h.dtype))
        return total / math.sqrt(s.max_len)

    def flops(self, rows: int, events: int) -> int:
        """Forward FLOPs for `rows` samples with `events` events in all."""
        dim, hidden = self.target.out_features, self.unit.up.out_features
        by_row = self.target.weight.numel() + dim * hidden
        return 2 * rows * by_row + 2 * events * hidden * (2 * dim + 1)


class DINBackbone(Backbone):
    """tokens [B, N, D] and events -> the first layers of the network, [B, 1, hidden]."""

    candidate: Tensor  # int64, tokens of the candidate

    def __init__(
        self, config: DINConfig, fields: int, candidate: list[int], kinds: list[str]
    ) -> None:
        super().__init__()
        self.register_buffer("candidate", torch.tensor(candidate), persistent=False)
        self.attention = nn.ModuleDict(
            {k: TargetAttention(len(candidate), config.dim, config.attention) for k in kinds}
        )
        self.deep = MLP((fields + len(kinds)) * config.dim, config.hidden, config.hidden)
        self.tokens, self.width = 1, config.hidden

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        x = level(tokens)
        candidate = x.index_select(1, self.candidate)
        events = expand(events, request)
        interests = [self.attention[kind](s, candidate) for kind, (s, _) in events.items()]
        y: Tensor = self.deep(torch.cat([x.flatten(1), *interests], dim=1))
        return gelu_approx(y).unsqueeze(1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        rows = []
        for kind, attention in self.attention.items():
            flops = attention.flops(n, int(lengths[kind].sum())) / n  # type: ignore[operator]
            rows.append(Row(f"attention.{kind}", size(attention), flops))
        return [*rows, Row("deep", size(self.deep), self.deep.flops(n) / n)]


class DIN(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: DINConfig) -> None:
        super().__init__(schema, config, config.dim)
        fields = self.embedding.fields
        self.add(DINBackbone(config, len(fields), candidate_tokens(fields), list(schema.events)))
