"""RankMixer (arXiv 2507.15551): tokens exchange slices of themselves, then each goes its own way.

    u_e   = TargetAttention_e(events of type e with their ages, candidate)
    X     = split([tokens | u_1 .. u_E]) into T tokens, each through its own linear map
    S     = LN(Mix(X) + X)         Mix: slice t of token i becomes slice i of token t, no weights
    X'    = LN(FFN_t(S_t) + S_t)   a two-layer network of its own for each token
    logit = MLP(mean over tokens of X^(L))

It knows no sequence; the paper takes each one as pooled by a module before it, here DIN's.
Shapes: B rows, N context tokens, D their width and that of the T tokens, L packed events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.features.schema import Schema
from kunlun.layers.token_mlp import TokenLinear, TokenMLP
from kunlun.models.events import Events, level
from kunlun.models.pooled import Interests
from kunlun.models.ranker import Backbone, Ranker, Row, candidate_tokens, size


@dataclass(frozen=True, kw_only=True)
class RankMixerConfig(Config):
    """Scales by `dim` and `hidden`, then `layers` and `tokens`."""

    dim: int = 64
    layers: int = 2
    tokens: int = 8  # T; as many slices has every token
    hidden: int = 256  # of each token's feed-forward network
    attention: int = 64  # hidden width of the unit that pools a history
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, tokens=self.tokens, hidden=self.hidden)
        at_least_one("", attention=self.attention, head_hidden=self.head_hidden)
        if self.dim % self.tokens:
            raise ConfigError(
                f"model: dim ({self.dim}) must be a multiple of tokens ({self.tokens}), "
                "so that every token has a slice for each"
            )


def mix_slices(x: Tensor) -> Tensor:
    """Slice t of token i becomes slice i of token t: [B, T, D] -> [B, T, D], its own inverse."""
    rows, tokens, dim = x.shape
    return x.view(rows, tokens, tokens, dim // tokens).transpose(1, 2).reshape(x.shape)


class RankMixerLayer(nn.Module):
    """[B, T, D] -> [B, T, D]. FLOPs: 4 B T D hidden."""

    def __init__(self, config: RankMixerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn = TokenMLP(config.tokens, dim, config.hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        s = self.norm1(mix_slices(x) + x)
        out: Tensor = self.norm2(self.ffn(s) + s)
        return out


class RankMixerBackbone(Backbone):
    """tokens [B, N, D] and events -> the mean of T mixed tokens, [B, 1, D]."""

    def __init__(
        self, config: RankMixerConfig, fields: int, candidate: list[int], kinds: list[str]
    ) -> None:
        super().__init__()
        self.interests = Interests(kinds, config.dim, config.attention, candidate)
        self.share = -(-(fields + len(kinds)) * config.dim // config.tokens)
        self.split = TokenLinear(config.tokens, self.share, config.dim)
        self.layers = nn.ModuleList(RankMixerLayer(config) for _ in range(config.layers))
        self.parts, self.tokens, self.width = config.tokens, 1, config.dim

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        context = level(tokens)
        pooled = self.interests(context, events, request)
        x = torch.cat([context.flatten(1), pooled], dim=1)
        x = F.pad(x, (0, self.parts * self.share - x.shape[1]))  # the last share may be short
        x = self.split(x.view(-1, self.parts, self.share))
        for layer in self.layers:
            x = layer(x)
        return torch.mean(x, 1, keepdim=True)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        rows = self.interests.costs(n, lengths)
        rows.append(Row("split", size(self.split), self.split.flops(n) / n))
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, RankMixerLayer)
            rows.append(Row(f"layer{i}", size(layer), layer.ffn.flops(n) / n))
        return rows


class RankMixer(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: RankMixerConfig) -> None:
        super().__init__(schema, config, config.dim)
        fields, kinds = self.embedding.fields, list(schema.events)
        self.add(RankMixerBackbone(config, len(fields), candidate_tokens(fields), kinds))
