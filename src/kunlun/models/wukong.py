"""Wukong (arXiv 2403.02545): factorization machines, stacked; layer i holds products up to 2^i.

    X_0     = [tokens | timed sum of each event type]
    X_(l+1) = LN([FMB(X_l) | LCB(X_l)] + X_l)       residual mapped over tokens where n changes
    FMB(X)  = MLP(LN(flatten(X X^T Y)))             n_F tokens; Y generated from X (attentive)
    LCB(X)  = W_L X                                 n_L tokens
    logit   = MLP(flatten(X_L))

The layer is the one Kunlun's experts are made of. It knows no sequence; each event type enters as
a sum of its events, weighed by age.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.features.schema import Schema
from kunlun.layers.interaction import InteractionConfig, WukongLayer
from kunlun.models.events import Events
from kunlun.models.pooled import TimedSums
from kunlun.models.ranker import Backbone, Ranker, Row, size


@dataclass(frozen=True, kw_only=True)
class WukongConfig(Config):
    """Scales by `layers`, then n_products, n_linear, rank and hidden together."""

    dim: int = 64
    layers: int = 3
    n_products: int = 16  # n_F, tokens a layer makes of products
    n_linear: int = 16  # n_L, tokens a layer makes by linear compression
    rank: int = 24  # k
    hidden: int = 256  # of the MLPs
    attentive: int | None = 8  # summary tokens that Y is generated from; None: Y is learned
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, rank=self.rank, hidden=self.hidden)
        at_least_one("", n_products=self.n_products, n_linear=self.n_linear)
        at_least_one("", attentive=self.attentive, head_hidden=self.head_hidden)


class WukongBackbone(Backbone):
    """tokens [B, N, D] and events -> X_L [B, n_F + n_L, D]."""

    def __init__(self, config: WukongConfig, fields: int, kinds: int) -> None:
        """fields: N; kinds: how many event types."""
        super().__init__()
        self.history = TimedSums(kinds, config.dim)
        self.tokens, self.width = config.n_products + config.n_linear, config.dim
        block = InteractionConfig(
            experts=1, rank=config.rank, hidden=config.hidden, attentive=config.attentive
        )
        self.layers = nn.ModuleList(
            WukongLayer(
                self.tokens if i else fields + kinds,
                config.dim,
                block,
                config.n_products,
                config.n_linear,
            )
            for i in range(config.layers)
        )

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        x: Tensor = self.history(tokens, events, request)
        for layer in self.layers:
            x = layer(x)
        return x

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        rows = [
            Row(f"layer{i}", size(layer), layer.flops(n) / n)  # type: ignore[operator]
            for i, layer in enumerate(self.layers)
        ]
        return [Row("history", size(self.history), 0.0), *rows]


class Wukong(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: WukongConfig) -> None:
        super().__init__(schema, config, config.dim)
        self.add(WukongBackbone(config, len(self.embedding.fields), len(schema.events)))
