"""DCNv2 (arXiv 2008.13535): learned products of any order beside a deep network, in parallel.

    x_0     = flatten([tokens | timed sum of each event type])
    x_(l+1) = x_0 * (W_l x_l + b_l) + x_l          degree l + 2 after l + 1 cross layers
    h       = MLP(x_0)
    logit   = MLP([x_L | h])

It knows no sequence; each event type enters as a sum of its events, weighed by age.
docs/models.md has the other readings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.features.schema import Schema
from kunlun.layers.mlp import MLP
from kunlun.layers.products import CrossLayer
from kunlun.models.events import Events
from kunlun.models.pooled import TimedSums
from kunlun.models.ranker import Backbone, Ranker, Row, size
from kunlun.ops import gelu_approx


@dataclass(frozen=True, kw_only=True)
class DCNv2Config(Config):
    """Scales by `layers`, then `hidden` and `dim`."""

    dim: int = 64
    layers: int = 3  # cross layers
    rank: int | None = None  # of each W; None: full matrices
    hidden: int = 256  # of the deep network
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, rank=self.rank, hidden=self.hidden)
        at_least_one("", head_hidden=self.head_hidden)


class DCNv2Backbone(Backbone):
    """tokens [B, N, D] and events -> [x_L | h] as one wide token [B, 1, F + hidden]."""

    def __init__(self, config: DCNv2Config, fields: int, kinds: int) -> None:
        """fields: N; kinds: how many event types."""
        super().__init__()
        self.history = TimedSums(kinds, config.dim)
        inputs = (fields + kinds) * config.dim
        self.cross = nn.ModuleList(CrossLayer(inputs, config.rank) for _ in range(config.layers))
        self.deep = MLP(inputs, config.hidden, config.hidden)
        self.tokens, self.width = 1, inputs + config.hidden

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        x0 = x = self.history(tokens, events, request).flatten(1)
        for layer in self.cross:
            x = layer(x0, x)
        return torch.cat([x, gelu_approx(self.deep(x0))], dim=1).unsqueeze(1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        rows = [
            Row(f"cross{i}", size(layer), layer.flops(n) / n)  # type: ignore[operator]
            for i, layer in enumerate(self.cross)
        ]
        rows.insert(0, Row("history", size(self.history), 0.0))
        return [*rows, Row("deep", size(self.deep), self.deep.flops(n) / n)]


class DCNv2(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: DCNv2Config) -> None:
        super().__init__(schema, config, config.dim)
        self.add(DCNv2Backbone(config, len(self.embedding.fields), len(schema.events)))
