"""GDPA-PFFN: a feed-forward network whose weights the context generates (paper 4.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.layers.mlp import MLP
from kunlun.layers.norm import add_rms_norm, layer_norm, rms_norm
from kunlun.layers.rows import attend_to_rows
from kunlun.layers.tokens import mix_tokens
from kunlun.ops import gdpa
from kunlun.ops.jagged import Jagged

START_RATIO = 0.3  # rms(GDPA) / rms(query) at step 0, whatever the scale


@dataclass(frozen=True, kw_only=True)
class PersonalizedFFNConfig(Config):
    """kind "gdpa", or for ablations "softmax" (attention to the same rows at 1/sqrt(d_h), which
    reads no activation or scale), "plain" (a two-layer FFN without context) or "none".
    """

    kind: Literal["gdpa", "softmax", "plain", "none"] = "gdpa"
    rows: int = 32  # n_kv, rows of generated K and V: the hidden width
    activation: str | list[str] = "gelu_approx"  # one name, or one per head
    scale: float | Literal["max_len", "sqrt"] = "max_len"  # 1/tau_g: 1/max_len, 1/sqrt(d_h), number
    norm: Literal["sandwich", "bare"] = "sandwich"  # RMSNorm(GDPA(LN S) + LN S) + S, or GDPA(S) + S

    def __post_init__(self) -> None:
        at_least_one("ffn.", rows=self.rows)
        if self.scale == 0:
            raise ConfigError("ffn: scale must not be 0; kind 'none' removes the block")


class PersonalizedFFN(nn.Module):
    """Every event reads rows generated from the context summary, through an activation.

    u = LN(S); y = act(u K^T / tau_g) V + u; S' = RMSNorm(y) + S; norms without affine.
    K, V [B, n_kv, d_e] = token-axis expansion of X_sum to n_kv rows, then one linear map each; the
    sequence itself is the query, with no projection. The expanded rows are RMS-normalized, so that
    scores start at unit size times sqrt(d_h) / tau_g; V carries a learned gain per head that starts
    where rms(GDPA) = .3 rms(u): with tau_g ~ 1000 the block would start dead otherwise.
    FLOPs: 4 L n_kv d_e for the operator (kind "softmax": twice that, see attend_to_rows),
    2 B n_kv d (n_sum + 2 d_e) for K and V.
    """

    def __init__(
        self, dim: int, heads: int, max_len: int, n_sum: int, context: int,
        config: PersonalizedFFNConfig,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.head_dim, self.config = heads, dim // heads, config
        self.scale = (
            {"max_len": 1 / max_len, "sqrt": self.head_dim**-0.5}[config.scale]
            if isinstance(config.scale, str)
            else config.scale
        )
        self.expand = nn.Parameter(torch.randn(config.rows, n_sum) / n_sum**0.5)
        self.key = nn.Parameter(torch.randn(context, dim) / context**0.5)
        self.value = nn.Parameter(torch.randn(context, dim) / context**0.5)
        self.gain = nn.Parameter(torch.ones(heads))
        self._start_alive(n_sum, context)

    @torch.no_grad()
    def _start_alive(self, n_sum: int, context: int, samples: int = 32) -> None:
        """Set the gain from one random batch: no formula covers every activation and rank."""
        queries = torch.randn(samples * 16, self.heads * self.head_dim)
        offsets = torch.arange(samples + 1) * 16
        y = self._gdpa(layer_norm(queries), torch.randn(samples, n_sum, context), offsets)
        self.gain.mul_(START_RATIO / y.square().mean((0, 2)).sqrt().clamp(min=1e-12))

    def _gdpa(self, u: Tensor, x_sum: Tensor, offsets: Tensor) -> Tensor:
        """u [L, d_e], x_sum [n, n_sum, d] -> [L, H, d_h]."""
        rows = rms_norm(mix_tokens(self.expand, x_sum))
        shape = (-1, self.heads, self.head_dim)
        k = torch.matmul(rows, self.key).view(shape)
        # on the weight, not on v: rows outnumber channels
        value = self.value * self.gain.repeat_interleave(self.head_dim)
        v = torch.matmul(rows, value).view(shape)
        q = u.to(k.dtype).view(shape)
        if self.config.kind == "softmax":
            return attend_to_rows(q, k, v, offsets, self.config.rows)
        kv_offsets = torch.arange(offsets.shape[0], device=offsets.device) * self.config.rows
        return gdpa(
            q, k, v, offsets, kv_offsets,
            activation=self.config.activation, scale=self.scale,
        )  # fmt: skip

    def forward(self, s: Jagged, x_sum: Tensor) -> Jagged:
        """s [L, d_e] over n sequences, x_sum [n, n_sum, d] -> Jagged [L, d_e]."""
        u = layer_norm(s.values) if self.config.norm == "sandwich" else s.values
        y = self._gdpa(u, x_sum, s.offsets).view_as(u)
        if self.config.norm == "bare":
            return s.with_values(s.values + y)
        return s.with_values(add_rms_norm(s.values, u.to(y.dtype), y))

    def flops(self, rows: int, events: int) -> int:
        """Forward FLOPs for `rows` samples with `events` events in all."""
        n_kv, n_sum = self.expand.shape
        context, dim = self.key.shape
        products = 8 if self.config.kind == "softmax" else 4
        return 2 * rows * n_kv * context * (n_sum + 2 * dim) + products * events * n_kv * dim


class PlainFFN(nn.Module):
    """The ablation: a two-layer FFN of the same hidden width in GDPA's place, blind to context."""

    def __init__(self, dim: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.mlp, self.norm = MLP(dim, hidden, dim), norm

    def forward(self, s: Jagged, x_sum: Tensor) -> Jagged:
        """s [L, d_e] -> [L, d_e]; x_sum is not read."""
        if self.norm == "bare":
            return s.with_values(s.values + self.mlp(s.values))
        u = layer_norm(s.values)
        return s.with_values(add_rms_norm(s.values, u, self.mlp(u)))

    def flops(self, rows: int, events: int) -> int:
        """Forward FLOPs for `events` events."""
        return self.mlp.flops(events)
