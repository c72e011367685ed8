"""The frame that every model shares, so that comparisons differ in the backbone alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kunlun.features.batch import Batch
from kunlun.features.embedding import FeatureEmbedding, Field
from kunlun.features.schema import Schema
from kunlun.models.events import Events
from kunlun.models.head import Head


@dataclass(frozen=True)
class Row:
    """What one module costs: its parameters, and its forward FLOPs per sample."""

    module: str
    parameters: int
    flops: float


class Backbone(nn.Module):
    """The dense half: tokens [B, N, D], events, request int64 [B] or None -> [B, tokens, width].

    A pure function of what FeatureEmbedding gives; with `request`, events belong to R <= B
    requests.
    """

    tokens: int
    width: int

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        raise NotImplementedError

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """One row a module; lengths: event type -> history lengths int64 [n] of n samples."""
        raise NotImplementedError


class Ranker(nn.Module):
    """Batch -> logits float32 [B, tasks]: FeatureEmbedding, a backbone, one head a task.

    Config: any with a `head_hidden`. A subclass builds its backbone between the other two.
    """

    backbone: Backbone
    head: Head

    def __init__(
        self, schema: Schema, config: Any, dim: int, event_dims: dict[str, int] | None = None
    ) -> None:
        """dim: width of the tokens, and of events unless `event_dims` says otherwise by type."""
        super().__init__()
        self.schema, self.config = schema, config
        dims = dict.fromkeys(schema.events, dim) if event_dims is None else event_dims
        self.embedding = FeatureEmbedding(schema, dim, dims)

    def add(self, backbone: Backbone) -> None:
        """Put the backbone in place, and the head that fits it."""
        self.backbone = backbone
        self.head = Head(
            backbone.tokens, backbone.width, self.config.head_hidden, len(self.schema.tasks)
        )

    def forward(self, batch: Batch) -> Tensor:
        """[B, tasks], before the sigmoid."""
        tokens, events = self.embedding(batch)
        logits: Tensor = self.head(self.backbone(tokens, events, batch.request))
        return logits


def candidate_tokens(fields: list[Field]) -> list[int]:
    """Places of the tokens that hold a feature of the candidate; all, if the schema has none."""
    found = [i for i, f in enumerate(fields) if any(e.feature.role == "item" for e in f.inputs)]
    return found or list(range(len(fields)))


def size(module: nn.Module | None) -> int:
    """Number of parameters; 0 without a module."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())
