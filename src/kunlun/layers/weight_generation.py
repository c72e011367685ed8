"""Context tokens -> the summary that personalizes the sequences (paper 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kunlun.layers.mlp import MLP
from kunlun.layers.norm import layer_norm
from kunlun.layers.tokens import mix_tokens


class WeightGeneration(nn.Module):
    """X [B, N, D] -> X_sum [B, n_sum, D]: a linear map over the token axis, norm, 2-layer MLP.

    gate: X_sum * sigmoid(MLP(X_sum)) behind it, as in InterFormer; no account of Kunlun has it.
    FLOPs: 2 B n_sum (N D + 4 D^2), with the gate 2 B n_sum 4 D^2 more.
    """

    def __init__(self, tokens: int, n_sum: int, dim: int, *, gate: bool = False) -> None:
        super().__init__()
        self.compress = nn.Parameter(torch.randn(n_sum, tokens) / tokens**0.5)
        self.mlp = MLP(dim, 2 * dim, dim)
        self.gate = MLP(dim, 2 * dim, dim) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n_sum, D]."""
        y: Tensor = self.mlp(layer_norm(mix_tokens(self.compress, x)))
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y))
        return y

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        n_sum, tokens = self.compress.shape
        total = 2 * rows * n_sum * tokens * self.mlp.up.in_features + self.mlp.flops(rows * n_sum)
        return total + (self.gate.flops(rows * n_sum) if self.gate is not None else 0)
