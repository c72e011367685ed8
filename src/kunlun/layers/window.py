"""Sliding-window self-attention over one event sequence (paper 4.3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from kunlun.layers.norm import layer_norm
from kunlun.ops import rotary_split, window_attention
from kunlun.ops.flops import window_pairs
from kunlun.ops.jagged import Jagged


class SlidingWindowAttention(nn.Module):
    """S + W_o softmax(q k^T / sqrt(d_h)) v inside |i - j| <= window, pre-norm, q and k rotated.

    window None: the whole sequence (the ablation "full attention").
    FLOPs: 8 L d_e^2 for the projections, 4 d_e times the number of pairs inside the window.
    """

    def __init__(self, dim: int, heads: int, max_len: int, window: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.window = max_len if window is None else window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.out.weight, std=0.5 * dim**-0.5)

    def forward(self, s: Jagged, angle: Tensor | None) -> Jagged:
        """s [L, d_e], angle [L, d_h / 2] or None -> Jagged [L, d_e]."""
        length, dim = s.values.shape
        qkv = self.qkv(layer_norm(s.values)).view(length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.unbind(1) if angle is None else rotary_split(qkv, angle, turned=2)
        y = window_attention(q, k, v, s.offsets, window=self.window)
        return s.with_values(s.values + self.out(y.reshape(length, dim)))

    def flops(self, lengths: Tensor) -> int:
        """Forward FLOPs for sequences of these lengths, int64 [n]."""
        dim = self.out.in_features
        projections = 8 * int(lengths.sum()) * dim * dim
        pairs = sum(window_pairs(length, self.window) for length in lengths.tolist())
        return projections + 4 * dim * pairs
