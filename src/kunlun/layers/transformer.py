"""A post-norm transformer layer over packed sequences, as torch's own TransformerEncoderLayer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kunlun.ops import window_attention
from kunlun.ops.jagged import Jagged


class TransformerLayer(nn.Module):
    """S' = LN(S + MHA(S)), S'' = LN(S' + FFN(S')): full softmax attention, ReLU between.

    [L, d] -> [L, d]. Biases start at zero, see MLP.
    FLOPs: L (8 d^2 + 4 d hidden), and 4 d for each pair of events of a sequence.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for map_, gain in ((self.qkv, 1.0), (self.out, 1.0), (self.up, 1.0), (self.down, 2**0.5)):
            nn.init.normal_(map_.weight, std=gain * map_.in_features**-0.5)
            nn.init.zeros_(map_.bias)

    def forward(self, s: Jagged) -> Jagged:
        """See the class."""
        length, dim = s.values.shape
        q, k, v = self.qkv(s.values).view(length, 3, self.heads, dim // self.heads).unbind(1)
        y = window_attention(q, k, v, s.offsets, window=s.max_len)
        x: Tensor = self.norm1(s.values + self.out(y.reshape(length, dim)))
        return s.with_values(self.norm2(x + self.down(F.relu(self.up(x)))))

    def flops(self, lengths: Tensor) -> int:
        """Forward FLOPs for sequences of these lengths, int64 [n]."""
        dim, hidden = self.up.in_features, self.up.out_features
        rows, pairs = int(lengths.sum()), int(lengths.square().sum())
        return rows * (8 * dim * dim + 4 * dim * hidden) + 4 * dim * pairs
