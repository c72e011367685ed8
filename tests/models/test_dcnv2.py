"""DCNv2 against an implementation of its own, from the equations of arXiv 2008.13535."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.dcnv2 import DCNv2, DCNv2Config
from tests.models import plain
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}


def equations(w: plain.Weights, tokens: Tensor, events, config: DCNv2Config) -> Tensor:
    out = []
    for i in range(len(tokens)):
        x0 = x = plain.with_sums(w, tokens, events, i, 12).flatten()
        for layer in range(config.layers):
            weight = w[f"cross.{layer}.up.weight"]
            if config.rank is not None:
                weight = weight @ w[f"cross.{layer}.down.weight"]
            x = x0 * (weight @ x + w[f"cross.{layer}.up.bias"]) + x
        deep = F.gelu(plain.mlp(w, "deep", x0), approximate="tanh")
        out.append(torch.cat([x, deep])[None])
    return torch.stack(out)


@pytest.mark.parametrize("rank", [None, 5], ids=["full", "low_rank"])
def test_dcnv2_against_equations(rank: int | None) -> None:
    schema, config = make_schema(), DCNv2Config(dim=8, layers=2, rank=rank, hidden=6)
    torch.manual_seed(0)
    model = DCNv2(schema, config)
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    expected = equations(parameters(model.backbone), *inputs, config)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    f = 8 * (inputs[0].shape[1] + 2)
    cross = f * f + f if rank is None else 2 * f * rank + f
    count = sum(p.numel() for p in model.backbone.parameters())
    assert count == 2 * cross + plain.mlp_size(f, 6, 6) + 2 * 64 * 8


def test_the_cross_network_alone_is_a_polynomial_of_degree_layers_plus_one() -> None:
    torch.manual_seed(0)
    model = DCNv2(make_schema(), DCNv2Config(dim=4, layers=2))
    cross = model.backbone.cross.double()
    x0 = torch.randn(1, cross[0].up.in_features, dtype=torch.float64)

    def network(t: float) -> Tensor:
        x = t * x0
        for layer in cross:
            x = layer(t * x0, x)
        return x.detach()

    points = torch.stack([network(t) for t in range(5)])
    for _ in range(3):
        points = points.diff(dim=0)
    assert points.abs().max() > 1e-3  # the third differences of a cubic are constant
    torch.testing.assert_close(points.diff(dim=0), torch.zeros_like(points[:1]), atol=1e-8, rtol=0)


@pytest.mark.parametrize("key", ["dim", "layers", "rank", "hidden", "head_hidden"])
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        DCNv2Config(**{key: 0})
