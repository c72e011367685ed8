"""Maps with weights of their own for every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kunlun.ops import gelu_approx


class TokenLinear(nn.Module):
    """Token t through its own matrix W_t, no bias: [B, N, dim_in] -> [B, N, dim_out].

    FLOPs: 2 B N dim_in dim_out.
    """

    def __init__(self, tokens: int, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(tokens, dim_in, dim_out) * dim_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim_in] -> [B, N, dim_out]."""
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1)

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        return 2 * rows * self.weight.numel()


class TokenMLP(nn.Module):
    """Token t through its own linear map, tanh-GELU and linear map, with biases that start at 0.

    [B, N, dim_in] -> [B, N, dim_out]. FLOPs: 2 B N hidden (dim_in + dim_out).
    """

    def __init__(self, tokens: int, dim_in: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.up = TokenLinear(tokens, dim_in, hidden)
        self.down = TokenLinear(tokens, hidden, dim_out)
        self.up_bias = nn.Parameter(torch.zeros(tokens, hidden))
        self.down_bias = nn.Parameter(torch.zeros(tokens, dim_out))
        with torch.no_grad():
            self.down.weight.mul_(1.5)  # GELU keeps 2/3 of rms

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim_in] -> [B, N, dim_out]."""
        hidden = gelu_approx(self.up(x) + self.up_bias)
        y: Tensor = self.down(hidden) + self.down_bias
        return y

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        return self.up.flops(rows) + self.down.flops(rows)
