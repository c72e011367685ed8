"""Global interaction: Wukong experts over all tokens (paper 4.4.3; Wukong 2403.02545)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kunlun.config import Config, at_least_one
from kunlun.errors import ConfigError
from kunlun.layers.mlp import MLP
from kunlun.layers.tokens import mix_tokens


@dataclass(frozen=True, kw_only=True)
class InteractionConfig(Config):
    """experts share the tokens among them; every sample uses all of them, there is no gate."""

    experts: int = 2
    rank: int = 8  # k of the optimized factorization machine
    hidden: int = 128  # of the MLP behind it
    attentive: int | None = None  # summary tokens that Y is generated from; None: Y is learned

    def __post_init__(self) -> None:
        at_least_one("interaction.", experts=self.experts, rank=self.rank, hidden=self.hidden)
        at_least_one("interaction.", attentive=self.attentive)


class AttentiveY(nn.Module):
    """Y of the attentive machine: an MLP over a few summary tokens, [B, N, D] -> [B, N, k].

    FLOPs: 2 B s N D for s summary tokens + the MLP's.
    """

    def __init__(self, tokens: int, dim: int, rank: int, hidden: int, summary: int) -> None:
        super().__init__()
        self.rank = rank
        self.compress = nn.Parameter(torch.randn(summary, tokens) / tokens**0.5)
        self.mlp = MLP(summary * dim, hidden, tokens * rank)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, k]."""
        y: Tensor = self.mlp(mix_tokens(self.compress, x).flatten(1))
        return y.view(-1, x.shape[1], self.rank)

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        summary, tokens = self.compress.shape
        dim = self.mlp.up.in_features // summary
        return 2 * rows * summary * tokens * dim + self.mlp.flops(rows)


class FactorizationMachineBlock(nn.Module):
    """FMB: tokens' pairwise products, compressed: X (X^T Y), LN, MLP.

    Y is [N, k], learned (optimized), or with `attentive` an AttentiveY's [B, N, k].
    [B, N, D] -> [B, n_out, D]. FLOPs: 4 B N D k + the MLP's.
    """

    def __init__(
        self, tokens: int, n_out: int, dim: int, rank: int, hidden: int,
        attentive: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens, self.n_out, self.dim, self.rank = tokens, n_out, dim, rank
        self.y: nn.Parameter | AttentiveY = (
            nn.Parameter(torch.randn(tokens, rank) / tokens**0.5)
            if attentive is None
            else AttentiveY(tokens, dim, rank, hidden, attentive)
        )
        self.norm = nn.LayerNorm(tokens * rank)
        self.mlp = MLP(tokens * rank, hidden, n_out * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n_out, D]."""
        if isinstance(self.y, AttentiveY):
            products = torch.bmm(x, torch.bmm(x.mT, self.y(x)))  # [B, N, k]
        else:
            products = torch.matmul(x, mix_tokens(self.y.T, x).mT)
        y: Tensor = self.mlp(self.norm(products.flatten(1)))
        return y.view(-1, self.n_out, self.dim)

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        y = self.y.flops(rows) if isinstance(self.y, AttentiveY) else 0
        return 4 * rows * self.tokens * self.dim * self.rank + self.mlp.flops(rows) + y


class WukongLayer(nn.Module):
    """X' = LN(concat(FMB(X), LCB(X)) + X): one Wukong layer, one expert of the mixture.

    [B, N, D] -> [B, n_F + n_L, D]; n_F outputs from products, n_L from the linear compression
    W_L X over tokens. Without n_F and n_L as many as came in, half of them (rounded up) products.
    Where the number of tokens changes the residual is a linear map over tokens.
    """

    def __init__(
        self, tokens: int, dim: int, config: InteractionConfig,
        n_products: int | None = None, n_linear: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        products = (tokens + 1) // 2 if n_products is None else n_products
        linear = tokens - products if n_linear is None else n_linear
        self.dim, self.tokens = dim, products + linear
        self.fmb = FactorizationMachineBlock(
            tokens, products, dim, config.rank, config.hidden, config.attentive
        )
        self.lcb = nn.Parameter(torch.randn(linear, tokens) / tokens**0.5)
        self.norm = nn.LayerNorm(dim)
        self.shortcut = (
            nn.Parameter(torch.randn(self.tokens, tokens) / tokens**0.5)
            if self.tokens != tokens
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, n_F + n_L, D]."""
        y = torch.cat([self.fmb(x), mix_tokens(self.lcb, x)], dim=1)
        out: Tensor = self.norm((x if self.shortcut is None else mix_tokens(self.shortcut, x)) + y)
        return out

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        over_tokens = self.lcb.numel() + (0 if self.shortcut is None else self.shortcut.numel())
        return self.fmb.flops(rows) + 2 * rows * over_tokens * self.dim


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
            raise ConfigError(
                f"model.interaction.experts ({m}) must not exceed the {tokens} tokens they share; "
                "lower it, or raise n_sum or the tokens of a tower"
            )
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
        # index_select: its gradient on CPU is a sum of rows, that of x[:, order] an atomic scatter
        parts = x.index_select(1, self.order).split(self.shares, dim=1)
        outs = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
        return torch.cat(outs, dim=1).index_select(1, self.back)

    def flops(self, rows: int) -> int:
        """Forward FLOPs for `rows` samples."""
        return sum(expert.flops(rows) for expert in self.experts if isinstance(expert, WukongLayer))
