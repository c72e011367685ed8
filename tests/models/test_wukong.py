"""Wukong against an implementation of its own, from the equations of arXiv 2403.02545."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.wukong import Wukong, WukongConfig
from tests.models import plain
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}


def equations(w: plain.Weights, tokens: Tensor, events, config: WukongConfig) -> Tensor:
    out = []
    for i in range(len(tokens)):
        x = plain.with_sums(w, tokens, events, i, 12)
        for layer in range(config.layers):
            part = {k.removeprefix(f"layers.{layer}."): v for k, v in w.items()}
            x = _layer(part, x, config)
        out.append(x)
    return torch.stack(out)


def _layer(w: plain.Weights, x: Tensor, config: WukongConfig) -> Tensor:
    y = w.get("fmb.y")
    if config.attentive is not None:
        y = plain.mlp(w, "fmb.y.mlp", (w["fmb.y.compress"] @ x).flatten()).view(len(x), -1)
    products = (x @ x.T @ y).flatten()  # the quadratic form, before it is optimized
    normed = plain.norm(products) * w["fmb.norm.weight"] + w["fmb.norm.bias"]
    fmb = plain.mlp(w, "fmb.mlp", normed).view(config.n_products, -1)
    shortcut = w["shortcut"] @ x if len(x) != config.n_products + config.n_linear else x
    total = torch.cat([fmb, w["lcb"] @ x]) + shortcut
    return plain.norm(total) * w["norm.weight"] + w["norm.bias"]


def _size(n: int, config: WukongConfig) -> int:
    d, k, hidden = config.dim, config.rank, config.hidden
    n_out = config.n_products + config.n_linear
    y = n * k
    if config.attentive is not None:
        y = config.attentive * n + plain.mlp_size(config.attentive * d, hidden, n * k)
    fmb = y + 2 * n * k + plain.mlp_size(n * k, hidden, config.n_products * d)
    return fmb + config.n_linear * n + (n_out * n if n != n_out else 0) + 2 * d


@pytest.mark.parametrize("attentive", [None, 2], ids=["optimized", "attentive"])
@pytest.mark.parametrize("n_linear", [3, 5], ids=["plain_residual", "mapped_residual"])
def test_wukong_against_equations(attentive: int | None, n_linear: int) -> None:
    schema = make_schema()
    config = WukongConfig(
        dim=8, layers=3, n_products=4, n_linear=n_linear, rank=3, hidden=6, attentive=attentive
    )
    torch.manual_seed(0)
    model = Wukong(schema, config)
    for p in model.backbone.parameters():  # norms start at 1 and 0, which would hide their place
        p.data += 0.1 * torch.randn_like(p)
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    expected = equations(parameters(model.backbone), *inputs, config)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    first = inputs[0].shape[1] + 2
    count = sum(p.numel() for p in model.backbone.parameters())
    layers = _size(first, config) + 2 * _size(4 + n_linear, config)
    assert count == layers + 2 * 64 * 8


@pytest.mark.parametrize(
    "key",
    ["dim", "layers", "n_products", "n_linear", "rank", "hidden", "attentive", "head_hidden"],
)
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        WukongConfig(**{key: 0})
