"""HSTU (arXiv 2402.17152): a stack of gated layers without softmax over one causal sequence.

    S            = Norm(x_1 + type_1 .. x_T + type_T, c)      c = W_c [all tokens] + a type
    U, V, Q, K   = split(SiLU(Norm(S) W))
    A            = SiLU(Q K^T / sqrt(d_h) + rab(position, time)),  causal
    S'           = S + W_o (Norm(A V) * U)
    logit        = MLP([tokens | Norm(S^(L) of c)])

It knows one sequence: event types are merged by time. Shapes: B rows, N context tokens, D their
width, L packed events with a candidate behind each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunlun import ops
from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.features.embedding import TABLE_STD
from kunlun.features.schema import Schema
from kunlun.layers.norm import layer_norm
from kunlun.models.events import Events, level
from kunlun.models.merge import Appended, MergedHistory
from kunlun.models.ranker import Backbone, Ranker, Row, size
from kunlun.ops.flops import window_pairs
from kunlun.ops.jagged import Jagged

AVERAGE = 1.0  # rab at the start: around 0 SiLU is linear, and weights of both signs cancel


@dataclass(frozen=True, kw_only=True)
class HSTUConfig(Config):
    """Scales by `layers`, `dim`, and `history`."""

    dim: int = 64
    layers: int = 3
    heads: int = 4
    history: int | None = None  # newest events of all types read; None: all that the data give
    window: int | None = None  # events a row looks back; None: all
    positions: int = 128  # buckets of rab; what is further apart shares the last
    times: int = 64  # buckets of rab, two for every doubling from a second on
    head_hidden: int = 128

    def __post_init__(self) -> None:
        at_least_one("", dim=self.dim, layers=self.layers, heads=self.heads, history=self.history)
        at_least_one("", window=self.window, positions=self.positions, times=self.times)
        at_least_one("", head_hidden=self.head_hidden)
        if self.dim % self.heads:
            raise ConfigError(f"model: {self.heads} heads do not divide dim ({self.dim})")


class HSTULayer(nn.Module):
    """S + W_o (Norm(A V) * U), see the top of the file: [L, D] -> [L, D].

    last: only the candidate's row, the last of every sequence, comes out; the others give K and V.
    FLOPs: 4 L D^2 + 6 M D^2 for M rows that come out, and 4 D for each pair of rows that meet.
    """

    def __init__(self, config: HSTUConfig, longest: int, *, last: bool) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.window, self.longest = config.heads, config.window, longest
        self.last = last
        self.uvqk = nn.Linear(dim, 4 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.position = nn.Parameter(AVERAGE + torch.randn(config.positions) * TABLE_STD)
        self.time = nn.Parameter(torch.randn(config.times) * TABLE_STD)
        nn.init.normal_(self.uvqk.weight, std=dim**-0.5)
        nn.init.normal_(self.out.weight, std=dim**-0.5)

    def forward(self, s: Jagged, age: Tensor) -> Jagged:
        """s [L, D], age [L] seconds -> Jagged [L, D]."""
        length, dim = s.values.shape
        candidate = s.offsets[1:].long() - 1
        u, v, q, k = self._maps(layer_norm(s.values), candidate)
        q, k, v = (part.view(length, self.heads, dim // self.heads) for part in (q, k, v))
        y = ops.hstu_attention(
            q, k, v, s.offsets, age, self.position, self.time, window=self.window
        )
        y, x = y.flatten(1), s.values
        if self.last:
            y, x = y.index_select(0, candidate), x.index_select(0, candidate)
            s = Jagged(x, torch.arange(s.n + 1, device=x.device), 1)
        # Norm takes back the division by N, and would push a short history under its eps
        return s.with_values(x + self.out(layer_norm(y) * u))

    def _maps(self, x: Tensor, candidate: Tensor) -> tuple[Tensor, ...]:
        """x [L, D] -> U, V, Q, K [L, D]; last: U of the candidates alone, Q zero elsewhere."""
        if not self.last:
            return F.silu(self.uvqk(x)).chunk(4, dim=1)
        of_u, of_v, of_q, of_k = self.uvqk.weight.chunk(4)
        asking = x.index_select(0, candidate)
        u, q = F.silu(F.linear(asking, torch.cat([of_u, of_q]))).chunk(2, dim=1)
        v, k = F.silu(F.linear(x, torch.cat([of_v, of_k]))).chunk(2, dim=1)
        return u, v, torch.zeros_like(k).index_copy(0, candidate, q), k

    def flops(self, lengths: Tensor) -> int:
        """Forward FLOPs for sequences of these lengths, int64 [n]."""
        dim = self.out.in_features
        reach = self.longest if self.window is None else self.window
        pairs = sum(window_pairs(length, reach, causal=True) for length in lengths.tolist())
        rows = int(lengths.sum())
        out = len(lengths) if self.last else rows
        return (4 * rows + 6 * out) * dim * dim + 4 * dim * pairs


class HSTUBackbone(Backbone):
    """tokens [B, N, D], events -> [B, N + 1, D]: context, and the candidate having read history."""

    def __init__(self, config: HSTUConfig, caps: dict[str, int], fields: int) -> None:
        super().__init__()
        self.candidate_map = nn.Linear(fields * config.dim, config.dim, bias=False)
        self.kind = nn.Parameter(torch.randn(config.dim) * TABLE_STD)
        self.history = MergedHistory(caps, config.dim, config.history, ages=False)
        longest = self.history.max_len + 1
        self.layers = nn.ModuleList(
            HSTULayer(config, longest, last=i == config.layers - 1) for i in range(config.layers)
        )
        self.tokens, self.width = fields + 1, config.dim

    def forward(self, tokens: Tensor, events: Events, request: Tensor | None = None) -> Tensor:
        """See the class."""
        s, age = self.history(tokens, events, request)
        c = self.candidate_map(tokens.flatten(1)) + self.kind
        layout = Appended(s, 1)
        age = layout.join(age, age.new_zeros(s.n, 1))
        values = layout.join(s.values, c.unsqueeze(1).to(s.values.dtype))
        # ids come at rms .02, beside which the layers' results would leave nothing of them
        s = Jagged(ops.layer_norm(values), layout.offsets, layout.max_len)
        for layer in self.layers:
            s = layer(s, age)
        return torch.cat([level(tokens), layer_norm(s.values).unsqueeze(1)], dim=1)

    def costs(self, n: int, lengths: dict[str, Tensor]) -> list[Row]:
        """See Backbone."""
        merged = self.history.lengths(lengths, n) + 1
        return [
            Row("candidate", size(self.candidate_map), 2.0 * size(self.candidate_map)),
            Row("types", size(self.history) + self.kind.numel(), 0.0),
            *(
                Row(f"layer{i}", size(layer), layer.flops(merged) / n)
                for i, layer in enumerate(self.layers)
                if isinstance(layer, HSTULayer)
            ),
        ]


class HSTU(Ranker):
    """Batch -> logits float32 [B, tasks]."""

    def __init__(self, schema: Schema, config: HSTUConfig) -> None:
        super().__init__(schema, config, config.dim)
        caps = {kind: event.max_len for kind, event in schema.events.items()}
        self.add(HSTUBackbone(config, caps, len(self.embedding.fields)))
