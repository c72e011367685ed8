"""Kunlun (arXiv 2602.10016): one backbone for event sequences and feature interaction.

    X_sum = WeightGeneration(X)                          what personalizes the sequences
    S_e'  = GDPA-PFFN(S_e, X_sum)  on global layers      GDPA = act(S K^T / tau_g) V, no softmax
            SlidingWindowAttention(S_e) on local layers
    H_e   = HSP_e(S_e')  on global layers, reused on local ones (CompSkip)
    X'    = Wukong experts(concat(X_sum, H_1 .. H_E))    becomes the next layer's X
    logit = MLP(flatten(X^(L)))

Every event type e has a tower of its own: width, heads, seeds, tokens, depth, window, history.
Where the paper is silent, docs/models.md says which reading this is and why.

Shapes: B rows, R requests (R = B without request deduplication), N context tokens, D token width,
L packed events of one type, d_e that type's width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kunlun import ops
from kunlun.config import Config, at_least_one, parse
from kunlun.errors import ConfigError
from kunlun.features.embedding import TABLE_STD
from kunlun.features.schema import Schema
from kunlun.layers.interaction import GlobalInteraction, InteractionConfig
from kunlun.layers.personalized_ffn import PersonalizedFFN, PersonalizedFFNConfig, PlainFFN
from kunlun.layers.pooling import PoolingConfig, SeedPooling
from kunlun.layers.rote import Rote, RoteConfig
from kunlun.layers.weight_generation import WeightGeneration
from kunlun.layers.window import SlidingWindowAttention
from kunlun.models.events import AGE_BUCKETS, Events, add_ages, expand, newest
from kunlun.models.ranker import Backbone, Ranker, Row, size
from kunlun.ops.jagged import Jagged


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Config):
    """One event type's tower (paper 4.4.2)."""

    dim: int = 64
    heads: int = 4
    layers: int | None = None  # depth; None: as deep as the model
    history: int | None = None  # newest events read; None: all that the data give
    attention: Literal["window", "none"] = "window"
    window: int | None = 32  # half width w; None: the whole sequence
    ffn: PersonalizedFFNConfig = field(default_factory=PersonalizedFFNConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    time: RoteConfig = field(default_factory=RoteConfig)
    ages: bool = False  # a learned vector for every event's age, added where it enters

    def __post_init__(self) -> None:
        sizes = {"layers": self.layers, "history": self.history, "window": self.window}
        at_least_one("tower.", dim=self.dim, heads=self.heads, **sizes)
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ConfigError(
                f"tower: dim ({self.dim}) over heads ({self.heads}) must be an even whole number"
            )


@dataclass(frozen=True, kw_only=True)
class KunlunConfig(Config):
    """The backbone; `tower` holds for every event type, `events` changes single keys per type."""

    dim: int = 64
    layers: int = 3
    n_sum: int = 16  # summary tokens
    tower: TowerConfig = field(default_factory=TowerConfig)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    interaction: InteractionConfig = field(default_factory=InteractionConfig)
    head_hidden: int = 128
    gate: bool = False  # on WeightGeneration, as in InterFormer
    comp_skip: bool = True  # even layers global, odd layers local; off: every layer is both
    order: Literal["transformer_first", "pooling_first"] = "transformer_first"
    user_only: bool = False  # sequences personalized by what all rows of a request share

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, n_sum=self.n_sum)
        at_least_one("", head_hidden=self.head_hidden)

    def towers(self, schema: Schema) -> dict[str, TowerConfig]:
        """The resolved tower of every event type. Raises ConfigError for an unknown type or key."""
        for kind in self.events:
            if kind not in schema.events:
                known = ", ".join(schema.events) or "none"
                raise ConfigError(
                    f"model.events.{kind}: no such event type; the data have: {known}"
                )
        return {kind: self._tower(kind) for kind in schema.events}

    def _tower(self, kind: str) -> TowerConfig:
        if kind not in self.events:
            return self.tower
        values = _merge(self.tower.to_dict(), self.events[kind])
        return parse(TowerConfig, values, f"model.events.{kind}")


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with the keys of `changes`, nested groups key by key."""
    groups = {k: v for k, v in changes.items() if isinstance(v, dict) and k in values}
    return {**values, **changes, **{k: _merge(values[k], v) for k, v in groups.items()}}


class TowerLayer(nn.Module):
    """One layer of one event type: personalize, attend, pool; each only where CompSkip wants it."""

    def __init__(
        self, config: TowerConfig, model: KunlunConfig, context: int, max_len: int, layer: int
    ) -> None:
        super().__init__()
        depth = model.layers if config.layers is None else min(config.layers, model.layers)
        is_global = not model.comp_skip or layer % 2 == 0
        is_local = not model.comp_skip or layer % 2 == 1
        is_last = layer == depth - 1
        self.pooling_first = model.order == "pooling_first"
        updates = not (self.pooling_first and is_last)  # nobody would read the last update
        self.ffn: PersonalizedFFN | PlainFFN | None = None
        if updates and is_global and config.ffn.kind in ("gdpa", "softmax"):
            self.ffn = PersonalizedFFN(
                config.dim, config.heads, max_len, context, model.dim, config.ffn
            )
        elif updates and is_global and config.ffn.kind == "plain":
            self.ffn = PlainFFN(config.dim, config.ffn.rows, config.ffn.norm)
        self.attention = (
            SlidingWindowAttention(config.dim, config.heads, max_len, config.window)
            if updates and is_local and config.attention == "window"
            else None
        )
        # a tower that ends on a local layer pools once more, or its last update would be lost
        self.pooling = (
            SeedPooling(config.dim, config.heads, model.dim, config.pooling)
            if is_global or is_last
            else None
        )

    def forward(
        self, s: Jagged, angle: Tensor | None, x_sum: Tensor, summary: Tensor | None
    ) -> tuple[Jagged, Tensor | None]:
        """s [L, d_e], x_sum [R, n_sum, D], summary of the layer before -> (s', summary')."""
        if self.pooling_first and self.pooling is not None:
            summary = self.pooling(s, angle)
        if self.ffn is not None:
            s = self.ffn(s, x_sum)
        if self.attention is not None:
            s = self.attention(s, angle)
        if not self.pooling_first and self.pooling is not None:
            summary = self.pooling(s, angle)
        return s, summary

    def costs(self, name: str, n: int, lengths: Tensor) -> list[Row]:
        """One row a part; lengths int64 [n]."""
        events, rows = int(lengths.sum()), []
        if self.ffn is not None:
            rows.append(Row(f"{name}.ffn", size(self.ffn), self.ffn.flops(n, events) / n))
        if self.attention is not None:
            flops = self.attention.flops(lengths) / n
            rows.append(Row(f"{name}.window", size(self.attention), flops))
        if self.pooling is not None:
            flops = self.pooling.flops(n, events) / n
            rows.append(Row(f"{name}.pooling", size(self.pooling), flops))
        return rows


class KunlunLayer(nn.Module):
    """Transformer block per event type, then one interaction block (paper 4.1)."""

    def __init__(
        self, config: KunlunConfig, towers: dict[str, TowerConfig], max_len: dict[str, int],
        tokens: int, shared: int, layer: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight_generation = WeightGeneration(
            tokens, config.n_sum, config.dim, gate=config.gate
        )
        alive = {k: t for k, t in towers.items() if t.layers is None or layer < t.layers}
        self.tower = nn.ModuleDict(
            {k: TowerLayer(t, config, config.n_sum, max_len[k], layer) for k, t in alive.items()}
        )
        personalized = any(isinstance(t.ffn, PersonalizedFFN) for t in self.tower.values())
        self.user_weight_generation = (
            WeightGeneration(shared, config.n_sum, config.dim, gate=config.gate)
            if config.user_only and personalized
            else None
        )
        n_out = config.n_sum + sum(t.pooling.tokens for t in towers.values())
        self.interaction = GlobalInteraction(n_out, config.dim, layer, config.interaction)

    def forward(
        self, x: Tensor, x_user: Tensor | None, events: dict[str, Jagged],
        angles: dict[str, Tensor | None], summaries: dict[str, Tensor], request: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x [B, N, D] -> x' [B, n_sum + sum of summary tokens, D]; updates events, summaries."""
        x_sum = self.weight_generation(x)
        context = x_sum
        if self.user_weight_generation is not None:
            context = self.user_weight_generation(x_user)
        for kind, tower in self.tower.items():
            events[kind], summaries[kind] = tower(
                events[kind], angles[kind], context, summaries.get(kind)
            )
        pooled = [h if request is None else h.index_select(0, request) for h in summaries.values()]
        out: Tensor = self.interaction(torch.cat([x_sum, *pooled], dim=1))
        return out

    def costs(self, name: str, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """One row a part; lengths: event type -> int64 [n]."""
        generators = [g for g in (self.weight_generation, self.user_weight_generation) if g]
        flops = sum(g.flops(n) for g in generators) / n
        rows = [Row(f"{name}.weight_generation", sum(map(size, generators)), flops)]
        for kind, tower in self.tower.items():
            rows += tower.costs(f"{name}.{kind}", n, lengths[kind])  # type: ignore[operator]
        flops = self.interaction.flops(n) / n
        return [*rows, Row(f"{name}.interaction", size(self.interaction), flops)]


class KunlunBackbone(Backbone):
    """tokens [B, N, D], events, request int64 [B] or None -> X^(L) [B, N', D]; a pure function.

    With `request`, events belong to R <= B requests. They are expanded to the rows, unless
    `user_only`: then the towers run once per request and only their summaries are gathered.
    """

    shared: Tensor  # int64, context tokens the candidate has no part in

    def __init__(
        self, config: KunlunConfig, towers: dict[str, TowerConfig], max_len: dict[str, int],
        request_tokens: list[bool],
    ) -> None:  # fmt: skip
        super().__init__()
        self.user_only = config.user_only
        # ids come at rms .02; what adds to them without a norm would leave nothing of them
        self.bare = [k for k, t in towers.items() if t.ffn.norm == "bare" or t.ffn.kind == "none"]
        self.history = {k: min(max_len[k], t.history or max_len[k]) for k, t in towers.items()}
        self.ages = nn.ParameterDict(
            {k: torch.randn(AGE_BUCKETS, t.dim) * TABLE_STD for k, t in towers.items() if t.ages}
        )
        self.rote = nn.ModuleDict({k: Rote(t.dim // t.heads, t.time) for k, t in towers.items()})
        shared = [i for i, of_request in enumerate(request_tokens) if of_request]
        if config.user_only and not shared:
            raise ConfigError("model.user_only: the schema has no user feature to personalize by")
        self.register_buffer("shared", torch.tensor(shared, dtype=torch.int64), persistent=False)
        self.tokens = config.n_sum + sum(t.pooling.tokens for t in towers.values())
        self.width = config.dim
        self.layers = nn.ModuleList(
            KunlunLayer(
                config,
                towers,
                self.history,
                self.tokens if i else len(request_tokens),
                len(shared),
                i,
            )
            for i in range(config.layers)
        )

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        events = {k: newest(*event, self.history[k]) for k, event in events.items()}
        x_user = tokens.index_select(1, self.shared) if self.user_only else None
        if request is not None and x_user is not None and events:
            x_user = x_user[_first_rows(request, next(iter(events.values()))[0].n)]
        elif request is not None:
            events, request = expand(events, request), None
        angles = {k: self.rote[k](s, age) for k, (s, age) in events.items()}
        sequences = {k: self._entering(k, *event) for k, event in events.items()}
        x = tokens
        summaries: dict[str, Tensor] = {}
        for layer in self.layers:
            x = layer(x, x_user, sequences, angles, summaries, request)
        return x

    def _entering(self, kind: str, s: Jagged, age: Tensor) -> Jagged:
        if kind in self.ages:
            s = add_ages(s, age, self.ages[kind])
        return s.with_values(ops.layer_norm(s.values)) if kind in self.bare else s

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        kept = {k: v.clamp(max=self.history[k]) for k, v in lengths.items()}
        marks = {"rote": size(self.rote), "ages": size(self.ages)}
        rows = [Row(name, parameters, 0.0) for name, parameters in marks.items() if parameters]
        for i, layer in enumerate(self.layers):
            rows += layer.costs(f"layer{i}", n, kept)  # type: ignore[operator]
        return rows


def _first_rows(request: Tensor, requests: int) -> Tensor:
    """The first row of every request: request int64 [B] -> int64 [R]."""
    row = torch.arange(request.shape[0], device=request.device)
    last = request.new_full((requests,), request.shape[0] - 1)
    return last.scatter_reduce(0, request, row, "amin")


class Kunlun(Ranker):
    """Batch -> logits float32 [B, tasks], one head a task."""

    backbone: KunlunBackbone

    def __init__(self, schema: Schema, config: KunlunConfig) -> None:
        towers = config.towers(schema)
        super().__init__(schema, config, config.dim, {k: t.dim for k, t in towers.items()})
        max_len = {k: schema.events[k].max_len for k in towers}
        self.add(KunlunBackbone(config, towers, max_len, self.embedding.request_tokens))
