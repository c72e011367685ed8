"""Wukong against its equations, and the partition of tokens among experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kunlun.layers.interaction import GlobalInteraction, InteractionConfig, WukongLayer


def test_wukong_against_equations() -> None:
    torch.manual_seed(0)
    layer = WukongLayer(5, 6, InteractionConfig(rank=3, hidden=7)).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    fmb, expected = layer.fmb, []
    for sample in x:
        fm = sample @ sample.T @ fmb.y  # X X^T Y
        flat = F.layer_norm(fm.flatten(), (15,), fmb.norm.weight, fmb.norm.bias)
        hidden = F.gelu(fmb.mlp.up.weight @ flat + fmb.mlp.up.bias, approximate="tanh")
        products = (fmb.mlp.down.weight @ hidden + fmb.mlp.down.bias).view(3, 6)
        y = torch.cat([products, layer.lcb @ sample]) + sample
        expected.append(F.layer_norm(y, (6,), layer.norm.weight, layer.norm.bias))
    torch.testing.assert_close(layer(x), torch.stack(expected))


def test_every_token_has_one_expert_and_its_place() -> None:
    config = InteractionConfig(experts=3, rank=2, hidden=4)
    for layer in (0, 1):
        block = GlobalInteraction(11, 4, layer, config)
        assert sorted(block.order.tolist()) == list(range(11))
        assert sum(block.shares) == 11
        for expert in block.experts:
            expert.forward = lambda x: x  # identity experts leave tokens where they were
        x = torch.randn(2, 11, 4)
        assert torch.equal(block(x), x)


def test_groups_differ_between_even_and_odd_layers() -> None:
    config = InteractionConfig(experts=2)
    even, odd = (GlobalInteraction(8, 4, i, config).order.tolist() for i in (0, 1))
    assert even == [0, 2, 4, 6, 1, 3, 5, 7]
    assert odd == [0, 1, 4, 5, 2, 3, 6, 7]
