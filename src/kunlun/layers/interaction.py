"""Global interaction: Wukong experts over all tokens (paper 4.4.3; Wukong 2403.02545)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.layers.mlp import MLP
from kunlun.layers.tokens import mix_tokens


@dataclass(frozen=True, kw_only=True)
class InteractionConfig(Config):
    """experts share the tokens among them; every sample uses all of them, there is no gate."""

    experts: int = 2
    rank: int = 8  # k of the optimized factorization machine
    hidden: int = 128  # of the MLP behind it

    def __post_init__(self) -> None:
        at_least_one("interaction.", experts=self.experts, rank=self.rank, hidden=self.hidden)


class FactorizationMachineBlock(nn.Module):
    """FMB: tokens' pairwise products, compressed: X (X^T Y), Y [N, k] learned, LN, MLP.

    [B, N, D] -> [B, n_out, D]. FLOPs: 4 B N D k + the MLP's.
    """

    def __init__(self, tokens: int, n_out: int, dim: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.y = nn.Parameter(torch.randn(tokens, rank) / tokens**0.5)
        self.norm = nn.LayerNorm(tokens * rank)
        self.mlp = MLP(tokens * rank, hidden, n_out * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n_out, D]."""
        products = torch.matmul(x, mix_tokens(self.y.T, x).mT)  # [B, N, k]
        y: Tensor = self.mlp(self.norm(products.flatten(1)))
        return y.view(-1, self.n_out, x.shape[2])

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        tokens, rank = self.y.shape
        dim = self.mlp.down.out_features // self.n_out
        return 4 * rows * tokens * dim * rank + self.mlp.flops(rows)


class WukongLayer(nn.Module):
    """X' = LN(concat(FMB(X), LCB(X)) + X): one Wukong layer, one expert of the mixture.

    [B, N, D] -> [B, N, D]; half the outputs (rounded up) from products, the others from the linear
    compression W_L X over tokens. One token: products only.
    """

    def __init__(self, tokens: int, dim: int, config: InteractionConfig) -> None:
        super().__init__()
        products = (tokens + 1) // 2
        self.fmb = FactorizationMachineBlock(tokens, products, dim, config.rank, config.hidden)
        self.lcb = nn.Parameter(torch.randn(tokens - products, tokens) / tokens**0.5)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        y = torch.cat([self.fmb(x), mix_tokens(self.lcb, x)], dim=1)
        out: Tensor = self.norm(x + y)
        return out

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        return self.fmb.flops(rows) + 2 * rows * self.lcb.numel() * self.norm.normalized_shape[0]


class GlobalInteraction(nn.Module):
    """M Wukong experts, each on its share of the tokens; outputs stand where the inputs stood.

    Shares are interleaved, by neighbours on even layers (token i to expert i mod M) and by groups
    of M on odd ones, so that tokens that were apart in one layer meet in the next.
    """

    order: Tensor  # int64 [N], tokens sorted by expert
    back: Tensor  # int64 [N], its inverse

    def __init__(self, tokens: int, dim: int, layer: int, config: InteractionConfig) -> None:
        super().__init__()
        m = config.experts
        if m > tokens:
            raise ValueError(f"experts ({m}) must not exceed the {tokens} tokens they share")
        neighbours = layer % 2 == 0 or tokens < m * m
        owner = [i % m if neighbours else (i // m) % m for i in range(tokens)]
        order = sorted(range(tokens), key=lambda i: owner[i])
        back = sorted(range(tokens), key=lambda i: order[i])
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("back", torch.tensor(back), persistent=False)
        self.shares = [owner.count(expert) for expert in range(m)]
        self.experts = nn.ModuleList(WukongLayer(n, dim, config) for n in self.shares)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        if len(self.experts) == 1:
            only: Tensor = self.experts[0](x)
            return only
        # index_select: its gradient is a sum of rows, that of x[:, order] an atomic scatter
        parts = x.index_select(1, self.order).split(self.shares, dim=1)
        outs = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
        return torch.cat(outs, dim=1).index_select(1, self.back)

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        return sum(expert.flops(rows) for expert in self.experts if isinstance(expert, WukongLayer))
