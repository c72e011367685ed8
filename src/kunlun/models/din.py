"""DIN (arXiv 1706.06978): every event is weighed by how it fits the candidate, then all are summed.

    u_e   = TargetAttention_e(events of type e with their ages, candidate)
    logit = MLP([tokens | u_1 .. u_E])

Shapes: B rows, N context tokens, E event types.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kunlun.config import Config, at_least_one
from kunlun.features.schema import Schema
from kunlun.layers.mlp import MLP
from kunlun.models.events import Events, level
from kunlun.models.pooled import Interests
from kunlun.models.ranker import Backbone, Ranker, Row, candidate_tokens, size
from kunlun.ops import gelu_approx


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


class DINBackbone(Backbone):
    """tokens [B, N, D] and events -> the first layers of the network, [B, 1, hidden]."""

    def __init__(
        self, config: DINConfig, fields: int, candidate: list[int], kinds: list[str]
    ) -> None:
        super().__init__()
        self.interests = Interests(kinds, config.dim, config.attention, candidate)
        self.deep = MLP((fields + len(kinds)) * config.dim, config.hidden, config.hidden)
        self.tokens, self.width = 1, config.hidden

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        x = level(tokens)
        y: Tensor = self.deep(torch.cat([x.flatten(1), self.interests(x, events, request)], dim=1))
        return gelu_approx(y).unsqueeze(1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        return [
            *self.interests.costs(n, lengths),
            Row("deep", size(self.deep), self.deep.flops(n) / n),
        ]


class DIN(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: DINConfig) -> None:
        super().__init__(schema, config, config.dim)
        fields = self.embedding.fields
        self.add(DINBackbone(config, len(fields), candidate_tokens(fields), list(schema.events)))
