"""OneTrans (arXiv 2510.26104): one causal transformer over history and features together.

    S, X  = events merged by time, each with type and age;  split(W [all tokens]) into n tokens
            both through RMSNorm, once, in front of the first layer
    Z     = [S ; X] + W_o MHA(RMSNorm([S ; X]))        causal, so X reads all of S
    Z'    = Z + FFN(RMSNorm(Z))
    Q, K, V and FFN: one set of weights for all events, one of its own for each token of X
    layer l goes on with the newest K_l events only, K_L = 0: a pyramid
    logit = MLP(RMSNorm(X^(L)))

Shapes: B rows, N context tokens, D width, n the model's own tokens, L packed events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.features.schema import Schema
from kunlun.layers.mlp import MLP
from kunlun.layers.norm import rms_norm
from kunlun.layers.token_mlp import TokenLinear, TokenMLP
from kunlun.models.events import Events
from kunlun.models.merge import Appended, MergedHistory
from kunlun.models.ranker import Backbone, Ranker, Row, size
from kunlun.ops import window_attention
from kunlun.ops.flops import window_pairs
from kunlun.ops.jagged import Jagged


@dataclass(frozen=True, kw_only=True)
class OneTransConfig(Config):
    """Scales by `layers` and `dim` together, and by `history`."""

    dim: int = 64
    layers: int = 4
    heads: int = 4
    hidden: int = 256  # of the feed-forward networks
    tokens: int = 8  # n, that all features are split into
    history: int | None = None  # newest events of all types read; None: all that the data give
    pyramid: bool = True  # off: every layer but the last keeps all events
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, heads=self.heads, hidden=self.hidden)
        at_least_one("", tokens=self.tokens, history=self.history, head_hidden=self.head_hidden)
        if self.dim % self.heads:
            raise ConfigError(f"model: {self.heads} heads do not divide dim ({self.dim})")

    def kept(self, longest: int) -> list[int]:
        """Events that go on behind each layer: down to none in equal steps."""
        steps = range(self.layers - 1, 0, -1) if self.pyramid else [self.layers] * (self.layers - 1)
        return [-(-longest * step // self.layers) for step in steps] + [0]


class OneTransLayer(nn.Module):
    """Mixed causal attention and mixed feed-forward network, both pre-norm.

    (S [L, D], X [B, n, D]) -> the newest `keep` events of every S, and X.
    FLOPs: 4 D^2 an event, 4 D^2 + 4 D hidden more for each that is kept; 8 D^2 + 4 D hidden a
    token; 4 D for each pair of the causal half.
    """

    def __init__(self, config: OneTransConfig, keep: int) -> None:
        super().__init__()
        dim, n = config.dim, config.tokens
        self.heads, self.keep = config.heads, keep
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        # behind the last layer no event is read, so none asks or is transformed
        self.query = nn.Linear(dim, dim, bias=False) if keep else None
        self.ffn = MLP(dim, config.hidden, dim) if keep else None
        self.token_qkv = TokenLinear(n, dim, 3 * dim)
        self.token_ffn = TokenMLP(n, dim, config.hidden, dim)
        self.out = nn.Linear(dim, dim, bias=False)
        for map_ in (self.key_value, self.query, self.out):
            if map_ is not None:
                nn.init.normal_(map_.weight, std=dim**-0.5)

    def forward(self, s: Jagged, x: Tensor) -> tuple[Jagged, Tensor]:
        """See the class."""
        layout, kept = Appended(s, x.shape[1]), s.newest_places(self.keep)
        u = rms_norm(s.values)
        k, v = self.key_value(u).chunk(2, dim=1)
        q = torch.zeros_like(k)  # of events that do not go on; their rows are dropped
        if self.query is not None:
            q = q.index_copy(0, kept, self.query(u.index_select(0, kept)))
        own = self.token_qkv(rms_norm(x)).chunk(3, dim=2)
        q, k, v = (
            layout.join(a, b).unflatten(1, (self.heads, -1))
            for a, b in zip((q, k, v), own, strict=True)
        )
        y = window_attention(q, k, v, layout.offsets, window=layout.max_len, causal=True)
        y = y.flatten(1)
        x = x + self.out(layout.rows_of(y))
        x = x + self.token_ffn(rms_norm(x))
        z = s.values.index_select(0, kept)
        if self.ffn is not None:
            z = z + self.out(y.index_select(0, layout.events.index_select(0, kept)))
            z = z + self.ffn(rms_norm(z))
        return s.shortened(z, self.keep), x

    def flops(self, lengths: Tensor) -> int:
        """Forward FLOPs for histories of these lengths, int64 [n samples]."""
        dim, n = self.out.in_features, self.token_qkv.weight.shape[0]
        events, kept = int(lengths.sum()), int(lengths.clamp(max=self.keep).sum())
        total = 4 * events * dim * dim
        if self.ffn is not None:
            total += 4 * kept * dim * dim + self.ffn.flops(kept)
        tokens = self.token_qkv.flops(len(lengths)) + self.token_ffn.flops(len(lengths))
        pairs = sum(window_pairs(t + n, t + n, causal=True) for t in lengths.tolist())
        return total + tokens + 2 * len(lengths) * n * dim * dim + 4 * dim * pairs


class OneTransBackbone(Backbone):
    """tokens [B, N, D], events -> [B, n, D]."""

    def __init__(self, config: OneTransConfig, caps: dict[str, int], fields: int) -> None:
        super().__init__()
        self.split = nn.Linear(fields * config.dim, config.tokens * config.dim)
        nn.init.normal_(self.split.weight, std=(fields * config.dim) ** -0.5)
        nn.init.zeros_(self.split.bias)
        self.history = MergedHistory(caps, config.dim, config.history, ages=True)
        self.layers = nn.ModuleList(
            OneTransLayer(config, keep) for keep in config.kept(self.history.max_len)
        )
        self.tokens, self.width = config.tokens, config.dim

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        s, _ = self.history(tokens, events, request)
        x = self.split(tokens.flatten(1)).unflatten(1, (self.tokens, self.width)).to(tokens.dtype)
        # ids enter at rms .02, of which the first layer would leave nothing
        s, x = s.with_values(rms_norm(s.values)), rms_norm(x)
        for layer in self.layers:
            s, x = layer(s, x)
        return rms_norm(x)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        merged = self.history.lengths(lengths, n)
        rows = [
            Row("split", size(self.split), 2.0 * self.split.weight.numel()),
            Row("types_and_ages", size(self.history), 0.0),
        ]
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, OneTransLayer)
            rows.append(Row(f"layer{i}", size(layer), layer.flops(merged) / n))
            merged = merged.clamp(max=layer.keep)
        return rows


class OneTrans(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: OneTransConfig) -> None:
        super().__init__(schema, config, config.dim)
        caps = {kind: event.max_len for kind, event in schema.events.items()}
        self.add(OneTransBackbone(config, caps, len(self.embedding.fields)))
