"""A post-norm transformer layer over packed sequences, as torch's own TransformerEncoderLayer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kunlun.ops import window_attention
from kunlun.ops.jagged import Jagged


class TransformerLayer(nn.Module):
    """S' = LN(S + MHA(S)), S'' = LN(S' + FFN(S')): full softmax attention, ReLU between.

    [L, d] -> [L, d], or with `keep` only the newest `keep` rows of every sequence, M in all: the
    others give keys and values only. Biases start at zero, see MLP.
    FLOPs: 4 L d^2 + M (4 d^2 + 4 d hidden), and 4 d for each pair of rows of a sequence.
    """

    def __init__(self, dim: int, heads: int, hidden: int, keep: int | None = None) -> None:
        super().__init__()
        self.heads, self.keep = heads, keep
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for map_, gain in ((self.qkv, 1.0), (self.out, 1.0), (self.up, 1.0), (self.down, 2**0.5)):
            nn.init.normal_(map_.weight, std=gain * map_.in_features**-0.5)
            nn.init.zeros_(map_.bias)

    def forward(self, s: Jagged) -> Jagged:
        """See the class."""
        x = s.values
        length, dim = x.shape
        if self.keep is None or self.keep >= s.max_len:
            q, k, v = self.qkv(x).view(length, 3, self.heads, dim // self.heads).unbind(1)
            y = window_attention(q, k, v, s.offsets, window=s.max_len)
            return s.with_values(self._rest(x, y.reshape(length, dim)))
        places = s.newest_places(self.keep)
        weights, biases = self.qkv.weight.split([dim, 2 * dim]), self.qkv.bias.split([dim, 2 * dim])
        x = x.index_select(0, places)
        asked = F.linear(x, weights[0], biases[0])
        kv = F.linear(s.values, weights[1], biases[1]).view(
            length, 2, self.heads, dim // self.heads
        )
        # the operator knows one layout: rows that do not ask are zero and dropped
        q = kv.new_zeros(length, dim).index_copy(0, places, asked).view_as(kv[:, 0])
        y = window_attention(q, kv[:, 0], kv[:, 1], s.offsets, window=s.max_len)
        y = y.reshape(length, dim).index_select(0, places)
        return s.shortened(self._rest(x, y), self.keep)

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.norm1(x + self.out(attended))
        x = self.norm2(x + self.down(F.relu(self.up(x))))
        return x

    def flops(self, lengths: Tensor) -> int:
        """Forward FLOPs for sequences of these lengths, int64 [n]."""
        dim, hidden = self.up.in_features, self.up.out_features
        rows, pairs = int(lengths.sum()), int(lengths.square().sum())
        kept = rows if self.keep is None else int(lengths.clamp(max=self.keep).sum())
        return 4 * rows * dim * dim + kept * (4 * dim * dim + 4 * dim * hidden) + 4 * dim * pairs
