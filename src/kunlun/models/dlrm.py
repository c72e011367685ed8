"""DLRM (arXiv 1906.00091): dot products of all pairs of embeddings, beside the dense features.

    X     = [tokens | timed sum of each event type]
    b     = MLP_bottom(x_numbers)                takes the place of x_numbers in X
    p     = <x_i, x_j> for all i < j
    logit = MLP_top([b | p])

It knows no sequence; each event type enters as a sum of its events, weighed by age.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.features.embedding import Field
from kunlun.features.schema import Schema
from kunlun.layers.mlp import MLP
from kunlun.layers.products import PairwiseDots
from kunlun.models.events import Events
from kunlun.models.pooled import TimedSums
from kunlun.models.ranker import Backbone, Ranker, Row, size
from kunlun.ops import gelu_approx


@dataclass(frozen=True, kw_only=True)
class DLRMConfig(Config):
    """Scales by `dim` and `hidden`, then by `head_hidden`; it has no depth of interaction."""

    dim: int = 64
    hidden: int = 256  # of the bottom network, and of the top one's first layer
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, hidden=self.hidden, head_hidden=self.head_hidden)


class DLRMBackbone(Backbone):
    """tokens [B, N, D] and events -> the first layers of the top network, [B, 1, hidden].

    Without a token of numbers there is no bottom network, as there are no dense features.
    """

    def __init__(self, config: DLRMConfig, fields: int, kinds: int, numbers: int | None) -> None:
        """fields: N; kinds: how many event types; numbers: place of the token of numbers."""
        super().__init__()
        self.history = TimedSums(kinds, config.dim)
        self.numbers = numbers
        dense = config.dim if numbers is not None else 0
        self.bottom = MLP(config.dim, config.hidden, config.dim) if dense else None
        if not dense and fields + kinds < 2:
            raise ConfigError("model: dlrm multiplies pairs of fields, but the schema has only one")
        self.dots = PairwiseDots(fields + kinds, config.dim)
        self.top = MLP(dense + self.dots.count, config.hidden, config.hidden)
        self.tokens, self.width = 1, config.hidden

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        x = self.history(tokens, events, request)
        if self.numbers is None or self.bottom is None:
            return self._top(self.dots(x))
        b = self.bottom(x[:, self.numbers])
        x = torch.cat([x[:, : self.numbers], b.unsqueeze(1), x[:, self.numbers + 1 :]], dim=1)
        return self._top(torch.cat([b, self.dots(x)], dim=1))

    def _top(self, products: Tensor) -> Tensor:
        return gelu_approx(self.top(products)).unsqueeze(1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        rows = [Row("history", size(self.history), 0.0)]
        if self.bottom is not None:
            rows.append(Row("bottom", size(self.bottom), self.bottom.flops(n) / n))
        rows.append(Row("dots", 0, self.dots.flops(n) / n))
        return [*rows, Row("top", size(self.top), self.top.flops(n) / n)]


def place_of_numbers(fields: list[Field]) -> int | None:
    """The first token made of numbers alone; None without one."""
    found = [i for i, f in enumerate(fields) if all(e.kind == "numeric" for e in f.inputs)]
    return found[0] if found else None


class DLRM(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: DLRMConfig) -> None:
        super().__init__(schema, config, config.dim)
        fields = self.embedding.fields
        numbers = place_of_numbers(fields)
        self.add(DLRMBackbone(config, len(fields), len(schema.events), numbers))
