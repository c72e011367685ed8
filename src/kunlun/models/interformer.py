"""InterFormer (arXiv 2411.09852): sequences and features read each other's summaries, in parallel.

    X_sum = Gate(MLP(X))                              over tokens, n -> n_sum
    S_sum = Gate([S_CLS | S_PMA | S_recent])          Gate(Y) = Y * sigmoid(MLP(Y))
    X'    = MLP(Interaction([X | S_sum]))             interaction arch: dot, DCNv2 or DHEN
    S'    = MHA(PFFN(X_sum, S))                       sequence arch, RoPE; X_sum before S in layer 1
    logit = MLP([X_sum | S_sum])                      of the last X and S

Both archs of a layer start from the layer's X and S; neither waits for the other. The paper knows
one sequence: event types are merged by time, or side by side by MaskNet where they are equally
long. Shapes: B rows, N context tokens, D width, L packed events, M = N + tokens of S_sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.features.schema import Schema
from kunlun.layers.generated_ffn import GeneratedFFN
from kunlun.layers.mlp import MLP
from kunlun.layers.norm import layer_norm
from kunlun.layers.personalized_ffn import PersonalizedFFN, PersonalizedFFNConfig
from kunlun.layers.pooling import PoolingConfig, SeedPooling
from kunlun.layers.products import CrossLayer, PairwiseDots
from kunlun.layers.rote import Rote, RoteConfig
from kunlun.layers.tokens import mix_tokens
from kunlun.layers.weight_generation import WeightGeneration
from kunlun.layers.window import SlidingWindowAttention
from kunlun.models.events import Events, level
from kunlun.models.masknet import MaskedMerge
from kunlun.models.merge import MergedHistory
from kunlun.models.ranker import Backbone, Ranker, Row, size
from kunlun.ops.jagged import Jagged


@dataclass(frozen=True, kw_only=True)
class InterFormerConfig(Config):
    """Scales by `layers`, then `dim` and hidden."""

    dim: int = 64
    layers: int = 3
    heads: int = 4
    n_sum: int = 4  # summary tokens of X; also the CLS tokens of S
    pma: int = 2  # pooled tokens of S
    recent: int = 2  # newest tokens of S
    reduce: Literal["mean", "sum"] = "mean"  # "sum": pooled tokens times events / sqrt(max_len)
    history: int | None = None  # newest events read; None: all that the data give
    pffn: Literal["generated", "gdpa"] = "generated"  # W = X_sum W_p, or Kunlun's rewriting of it
    gdpa: PersonalizedFFNConfig = field(default_factory=PersonalizedFFNConfig)
    interaction: Literal["dot", "dcnv2", "dhen"] = "dhen"
    rank: int = 32  # of the cross layer
    hidden: int = 128  # of the MLP behind the interaction
    merge: Literal["time", "masknet"] = "time"
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, heads=self.heads, n_sum=self.n_sum)
        at_least_one("", pma=self.pma, recent=self.recent, rank=self.rank, hidden=self.hidden)
        at_least_one("", head_hidden=self.head_hidden, history=self.history)
        if self.pffn == "gdpa" and self.gdpa.kind not in ("gdpa", "softmax"):
            raise ConfigError(
                f"model.gdpa.kind is '{self.gdpa.kind}', which InterFormer does not know; use "
                "'gdpa' or 'softmax'"
            )
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ConfigError(
                f"model: dim ({self.dim}) over heads ({self.heads}) must be an even whole number"
            )

    @property
    def summary(self) -> int:
        """Tokens of S_sum."""
        return self.n_sum + self.pma + self.recent


class SequenceSummary(nn.Module):
    """S_sum = Gate(LN([S_CLS | S_PMA | S_recent])): s [L, D] over n sequences -> [n, k, D].

    Each sequence begins with its CLS tokens, which are pooled as well; a place for which there is
    no event is zero. A norm would take a count back: "sum" multiplies behind it.
    FLOPs: the pooling's, and 8 n k D^2 for the gate.
    """

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.cls, self.recent, self.tokens = config.n_sum, config.recent, config.summary
        self.sums = config.reduce == "sum"
        pooling = PoolingConfig(kind="pma", tokens=config.pma)
        self.pma = SeedPooling(config.dim, config.heads, config.dim, pooling)
        self.gate = MLP(config.dim, 2 * config.dim, config.dim)

    def forward(self, s: Jagged) -> Tensor:
        """See the class."""
        first, end = s.offsets[:-1].long(), s.offsets[1:].long()
        cls = first[:, None] + torch.arange(self.cls, device=first.device)
        recent = end[:, None] - 1 - torch.arange(self.recent, device=first.device)
        there = (recent >= first[:, None] + self.cls)[:, :, None]
        places = torch.cat([cls, recent.clamp(min=0)], dim=1)
        rows = s.values.index_select(0, places.flatten()).unflatten(0, places.shape)
        newest = torch.where(there, rows[:, self.cls :], 0.0)
        y = layer_norm(torch.cat([rows[:, : self.cls], self.pma(s, None), newest], dim=1))
        if self.sums:
            counts = (s.lengths - self.cls).to(y.dtype) / math.sqrt(s.max_len - self.cls)
            sizes = [self.cls, self.tokens - self.cls - self.recent, self.recent]
            of_cls, pooled, of_recent = y.split(sizes, dim=1)
            y = torch.cat([of_cls, pooled * counts[:, None, None], of_recent], dim=1)
        gated: Tensor = y * torch.sigmoid(self.gate(y))
        return gated

    def flops(self, rows: int, events: int) -> int:
        """Forward FLOPs for `rows` sequences with `events` tokens in all."""
        return self.pma.flops(rows, events) + self.gate.flops(rows * self.tokens)


class Interaction(nn.Module):
    """X' = MLP(Interaction([X | S_sum])): [B, M, D] -> [B, N, D].

    dot: of all pairs. dcnv2: one low-rank cross layer over the flattened tokens. dhen: LN of the
    sum of both and of a linear map over tokens, its shortcut.
    """

    def __init__(self, tokens: int, n_out: int, config: InterFormerConfig) -> None:
        super().__init__()
        dim, hidden, kind = config.dim, config.hidden, config.interaction
        self.n_out, self.dim = n_out, dim
        self.dots = PairwiseDots(tokens, dim) if kind in ("dot", "dhen") else None
        self.cross = CrossLayer(tokens * dim, config.rank) if kind in ("dcnv2", "dhen") else None
        self.of_dots = MLP(self.dots.count, hidden, n_out * dim) if self.dots else None
        self.of_cross = MLP(tokens * dim, hidden, n_out * dim) if self.cross else None
        both = kind == "dhen"
        self.shortcut = nn.Parameter(torch.randn(n_out, tokens) / tokens**0.5) if both else None
        self.norm = nn.LayerNorm(dim) if both else None

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        parts = []
        if self.dots is not None and self.of_dots is not None:
            parts.append(self.of_dots(self.dots(z)))
        if self.cross is not None and self.of_cross is not None:
            flat = z.flatten(1)
            parts.append(self.of_cross(self.cross(flat, flat)))
        x: Tensor = sum(parts[1:], parts[0]).view(-1, self.n_out, self.dim)
        if self.shortcut is not None and self.norm is not None:
            x = self.norm(x + mix_tokens(self.shortcut, z))
        return x

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        parts = (self.dots, self.cross, self.of_dots, self.of_cross)
        shortcut = 0 if self.shortcut is None else 2 * rows * self.shortcut.numel() * self.dim
        return shortcut + sum(part.flops(rows) for part in parts if part is not None)


class InterFormerLayer(nn.Module):
    """The interaction arch and the sequence arch, both on what the layer was given."""

    def __init__(self, config: InterFormerConfig, fields: int, max_len: int) -> None:
        super().__init__()
        dim, heads, n_sum = config.dim, config.heads, config.n_sum
        self.context = WeightGeneration(fields, n_sum, dim, gate=True)
        self.summary = SequenceSummary(config)
        self.interaction = Interaction(fields + config.summary, fields, config)
        self.pffn: GeneratedFFN | PersonalizedFFN = (
            GeneratedFFN(dim, n_sum)
            if config.pffn == "generated"
            else PersonalizedFFN(dim, heads, max_len, n_sum, dim, config.gdpa)
        )
        self.attention = SlidingWindowAttention(dim, heads, max_len, None)

    def forward(
        self, x: Tensor, x_sum: Tensor, s: Jagged, angle: Tensor | None
    ) -> tuple[Tensor, Jagged]:
        """x [B, N, D], x_sum = self.context(x), s [L, D], its angles -> both of the next layer."""
        s_sum = self.summary(s)
        return self.interaction(torch.cat([x, s_sum], dim=1)), self.attention(
            self.pffn(s, x_sum), angle
        )

    def costs(self, name: str, n: int, lengths: Tensor) -> list[Row]:
        """One row a part; lengths int64 [n], CLS tokens included."""
        events = int(lengths.sum())
        parts = {
            "context": self.context.flops(n),
            "summary": self.summary.flops(n, events),
            "interaction": self.interaction.flops(n),
            "pffn": self.pffn.flops(n, events),
            "attention": self.attention.flops(lengths),
        }
        return [
            Row(f"{name}.{part}", size(self.get_submodule(part)), flops / n)
            for part, flops in parts.items()
        ]


class InterFormerBackbone(Backbone):
    """tokens [B, N, D] and events -> [X_sum | S_sum] of the last layer, [B, n_sum + k, D]."""

    def __init__(self, config: InterFormerConfig, fields: int, caps: dict[str, int]) -> None:
        super().__init__()
        self.merge: MaskedMerge | MergedHistory = (
            MaskedMerge(caps, config.dim, config.history)
            if config.merge == "masknet"
            else MergedHistory(caps, config.dim, config.history, ages=True)
        )
        self.rope = Rote(config.dim // config.heads, RoteConfig(mode="rope"))
        max_len = self.merge.max_len + config.n_sum
        self.layers = nn.ModuleList(
            InterFormerLayer(config, fields, max_len) for _ in range(config.layers)
        )
        self.context = WeightGeneration(fields, config.n_sum, config.dim, gate=True)
        self.summary = SequenceSummary(config)
        self.tokens, self.width = config.n_sum + config.summary, config.dim

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        x = level(tokens)
        s, _ = self.merge(tokens, events, request)
        # ids come at rms .02: the first result of PFFN would drown them
        s = s.with_values(layer_norm(s.values))
        angle: Tensor | None = None
        for i, layer in enumerate(self.layers):
            x_sum = layer.context(x)  # type: ignore[operator]
            if i == 0:
                s = prepend(x_sum, s)
                angle = self.rope(s, s.values[:, 0])
            x, s = layer(x, x_sum, s, angle)
        return torch.cat([self.context(x), self.summary(s)], dim=1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        merged = self.merge.lengths(lengths, n)
        flops = self.merge.flops(int(merged.sum())) if isinstance(self.merge, MaskedMerge) else 0
        rows = [Row("merge", size(self.merge), flops / n)]
        merged = merged + self.summary.cls
        for i, layer in enumerate(self.layers):
            rows += layer.costs(f"layer{i}", n, merged)  # type: ignore[operator]
        last = self.summary.flops(n, int(merged.sum()))
        rows.append(Row("context", size(self.context), self.context.flops(n) / n))
        return [*rows, Row("summary", size(self.summary), last / n)]


def prepend(cls: Tensor, s: Jagged) -> Jagged:
    """cls [n, k, D] before the sequences s [L, D] -> Jagged [L + n k, D]."""
    n, k, dim = cls.shape
    offsets = s.offsets.long() + k * torch.arange(n + 1, device=cls.device)
    front = offsets[:-1, None] + torch.arange(k, device=cls.device)
    behind = torch.arange(s.values.shape[0], device=cls.device) + k * (s.segments + 1)
    values = torch.cat([cls.reshape(-1, dim).to(s.values.dtype), s.values])
    places = torch.cat([front.flatten(), behind])
    return Jagged(torch.zeros_like(values).index_copy(0, places, values), offsets, s.max_len + k)


class InterFormer(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: InterFormerConfig) -> None:
        super().__init__(schema, config, config.dim)
        caps = {kind: event.max_len for kind, event in schema.events.items()}
        self.add(InterFormerBackbone(config, len(self.embedding.fields), caps))
