"""TransAct (arXiv 2306.00248) and BST (arXiv 1905.06874): events that know the candidate.

    c     = W_c [candidate's tokens]
    S     = [x_i + type_i + age_i ; c] for every event      TransAct: side by side, width 2 D
    S     = x_1 .. x_T with type and age, c with a type     BST: the candidate is one more token
    S'    = LN(S + MHA(S));  S'' = LN(S' + FFN(S'))         each layer, full attention
    out   = [newest K of S'' | max over S'']                BST: [S'' of c | newest K of S'']
    logit = MLP([tokens | out])

Both know one sequence: event types are merged by time. Shapes: B rows, N context tokens, D their
width, L packed events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.features.embedding import TABLE_STD
from kunlun.features.schema import Schema
from kunlun.layers.transformer import TransformerLayer
from kunlun.models.events import Events, level
from kunlun.models.merge import Appended, MergedHistory
from kunlun.models.ranker import Backbone, Ranker, Row, candidate_tokens, size
from kunlun.ops.jagged import Jagged


@dataclass(frozen=True, kw_only=True)
class TransActConfig(Config):
    """Scales by `dim` and `hidden`, `layers`, and `history`."""

    dim: int = 64
    layers: int = 2
    heads: int = 2
    hidden: int = 128  # of the feed-forward network
    newest: int = 10  # K, events whose outputs reach the head one by one
    history: int | None = None  # newest events of all types read; None: all that the data give
    candidate: Literal["beside", "behind"] = "beside"  # each event, or the sequence (BST)
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, heads=self.heads, hidden=self.hidden)
        at_least_one("", newest=self.newest, history=self.history, head_hidden=self.head_hidden)
        if self.width % self.heads:
            raise ConfigError(
                f"model: {self.heads} heads do not divide the transformer's width {self.width}"
            )

    @property
    def width(self) -> int:
        """Of the transformer."""
        return 2 * self.dim if self.candidate == "beside" else self.dim


@dataclass(frozen=True, kw_only=True)
class BSTConfig(TransActConfig):
    """One layer, the candidate behind the sequence."""

    layers: int = 1
    candidate: Literal["beside", "behind"] = "behind"


class TransActBackbone(Backbone):
    """tokens [B, N, D], events -> [B, N + 2 K + 2, D]; with the candidate behind, N + K + 1."""

    candidate: Tensor  # int64, the candidate's places among the tokens

    def __init__(
        self, config: TransActConfig, caps: dict[str, int], fields: int, candidate: list[int]
    ) -> None:
        super().__init__()
        self.beside, self.newest = config.candidate == "beside", config.newest
        self.register_buffer("candidate", torch.tensor(candidate), persistent=False)
        self.candidate_map = nn.Linear(len(candidate) * config.dim, config.dim, bias=False)
        self.history = MergedHistory(caps, config.dim, config.history, ages=True)
        if not self.beside:
            self.kind = nn.Parameter(torch.randn(config.dim) * TABLE_STD)
        # behind BST's last layer only the newest rows are read; TransAct's maximum reads all
        kept = [None] * (config.layers - 1) + [None if self.beside else config.newest + 1]
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.hidden, keep) for keep in kept
        )
        self.tokens = fields + (config.newest + 1) * config.width // config.dim
        self.width = config.dim

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        s, _ = self.history(tokens, events, request)
        c = self.candidate_map(tokens.index_select(1, self.candidate).flatten(1)).to(tokens.dtype)
        out = self._beside(s, c) if self.beside else self._behind(s, c)
        out = out.flatten(1).unflatten(1, (-1, self.width))
        return torch.cat([level(tokens), out], dim=1)

    def _beside(self, s: Jagged, c: Tensor) -> Tensor:
        """s [L, D], c [B, D] -> [B, K + 1, 2 D]."""
        s = s.with_values(torch.cat([s.values, c.index_select(0, s.segments)], dim=1))
        for layer in self.layers:
            s = layer(s)
        return torch.cat([newest_rows(s, self.newest), max_of_rows(s).unsqueeze(1)], dim=1)

    def _behind(self, s: Jagged, c: Tensor) -> Tensor:
        """s [L, D], c [B, D] -> [B, K + 1, D]."""
        layout = Appended(s, 1)
        values = layout.join(s.values, (c + self.kind).unsqueeze(1))
        s = Jagged(values, layout.offsets, layout.max_len)
        for layer in self.layers:
            s = layer(s)
        return newest_rows(s, self.newest + 1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        merged = self.history.lengths(lengths, n) + (0 if self.beside else 1)
        marks = size(self.history) + (0 if self.beside else self.kind.numel())
        return [
            Row("candidate", size(self.candidate_map), 2.0 * size(self.candidate_map)),
            Row("types_and_ages", marks, 0.0),
            *(
                Row(f"layer{i}", size(layer), layer.flops(merged) / n)
                for i, layer in enumerate(self.layers)
                if isinstance(layer, TransformerLayer)
            ),
        ]


def newest_rows(s: Jagged, count: int) -> Tensor:
    """The last `count` rows of every sequence, newest first, zeros where it is shorter.

    s [L, d] over n sequences -> [n, count, d].
    """
    start, stop = s.offsets.long()[:-1, None], s.offsets.long()[1:, None]
    row = stop - 1 - torch.arange(count, device=stop.device)
    padded = torch.cat([s.values, s.values.new_zeros(1, s.values.shape[1])])
    index = torch.where(row >= start, row, s.values.shape[0])
    return padded.index_select(0, index.flatten()).view(-1, count, padded.shape[1])


def max_of_rows(s: Jagged) -> Tensor:
    """[L, d] over n sequences -> [n, d]; zeros for an empty one."""
    width = s.values.shape[1]
    lowest = s.values.new_full((s.n, width), -torch.inf)
    index = s.segments[:, None].expand(-1, width)
    top = lowest.scatter_reduce(0, index, s.values, "amax")
    return torch.where(s.lengths[:, None] > 0, top, 0.0)


class TransAct(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: TransActConfig) -> None:
        super().__init__(schema, config, config.dim)
        caps = {kind: event.max_len for kind, event in schema.events.items()}
        fields = self.embedding.fields
        self.add(TransActBackbone(config, caps, len(fields), candidate_tokens(fields)))


class BST(TransAct):
    """TransAct with the candidate as a token of its own and without the maximum."""
