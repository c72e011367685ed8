"""OneTrans against an implementation of its own, from the equations of arXiv 2510.26104."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.onetrans import OneTrans, OneTransConfig
from kunlun.ops.jagged import Jagged
from tests.models import merged, plain
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}
TINY: dict[str, Any] = {"dim": 8, "heads": 2, "layers": 3, "hidden": 6, "tokens": 3}


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def own_mlp(w: plain.Weights, name: str, t: int, x: Tensor) -> Tensor:
    hidden = x @ w[f"{name}.up.weight"][t] + w[f"{name}.up_bias"][t]
    return (
        F.gelu(hidden, approximate="tanh") @ w[f"{name}.down.weight"][t] + w[f"{name}.down_bias"][t]
    )


def layer(
    w: plain.Weights, i: int, s: list[Tensor], x: list[Tensor], keep: int, heads: int
) -> tuple[list[Tensor], list[Tensor]]:
    """One token after the other reads those before it and itself."""
    name, dim = f"layers.{i}", len(x[0])
    queries: list[Tensor | None] = []
    keys, values = [], []
    for a, row in enumerate(s):
        k, v = (w[f"{name}.key_value.weight"] @ rms(row)).chunk(2)
        keys, values = [*keys, k], [*values, v]
        asks = a >= len(s) - keep
        queries.append(w[f"{name}.query.weight"] @ rms(row) if asks else None)
    for t, row in enumerate(x):
        q, k, v = (rms(row) @ w[f"{name}.token_qkv.weight"][t]).chunk(3)
        queries, keys, values = [*queries, q], [*keys, k], [*values, v]
    new_s, new_x = [], []
    for a, (row, q) in enumerate(zip([*s, *x], queries, strict=True)):
        if q is None:
            continue
        k, v = (torch.stack(m[: a + 1]).unflatten(1, (heads, -1)) for m in (keys, values))
        scores = torch.einsum("hd,jhd->hj", q.view(heads, -1), k) / (dim // heads) ** 0.5
        y = torch.einsum("hj,jhd->hd", scores.softmax(1), v).flatten()
        z = row + w[f"{name}.out.weight"] @ y
        if a < len(s):
            new_s.append(z + plain.mlp(w, f"{name}.ffn", rms(z)))
        else:
            new_x.append(z + own_mlp(w, f"{name}.token_ffn", a - len(s), rms(z)))
    return new_s, new_x


def equations(
    w: plain.Weights, tokens: Tensor, events, config: OneTransConfig, kept: list[int]
) -> Tensor:
    out = []
    for i in range(len(tokens)):
        s, _ = merged.merged_row(w, events, i, ages=True, history=config.history)
        x = list((w["split.weight"] @ tokens[i].flatten() + w["split.bias"]).view(-1, config.dim))
        s, x = [rms(row) for row in s], [rms(row) for row in x]
        for j, keep in enumerate(kept):
            s, x = layer(w, j, s, x, keep, config.heads)
        out.append(rms(torch.stack(x)))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [16, 8, 0]),
        ({"pyramid": False}, [24, 24, 0]),
        ({"history": 7}, [5, 3, 0]),
        ({"layers": 1}, [0]),
    ],
    ids=["pyramid", "flat", "history", "one_layer"],
)
def test_onetrans_against_equations(changes: dict[str, Any], kept: list[int]) -> None:
    torch.manual_seed(0)
    schema, config = make_schema(), OneTransConfig(**{**TINY, **changes})
    assert config.kept(config.history or 24) == kept
    model = OneTrans(schema, config)
    for p in model.backbone.parameters():  # no bias that happens to be zero
        torch.nn.init.normal_(p, std=0.3)
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    expected = equations(parameters(model.backbone), *inputs, config, kept)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    mixed = 2 * 64 + 64 + 3 * 8 * 24 + 3 * plain.mlp_size(8, 6, 8)
    shared = 64 + plain.mlp_size(8, 6, 8)  # what the last layer lacks
    layers = config.layers * (mixed + shared) - shared
    sizes = 6 * 8 * 24 - 8 * 24 + 24 + (2 + 64) * 8 + layers
    assert sum(p.numel() for p in model.backbone.parameters()) == sizes


def test_the_pyramid_drops_the_oldest_events() -> None:
    model = OneTrans(make_schema(), OneTransConfig(dim=16, layers=3))
    seen: list[Jagged] = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    model(make_batch(model.schema, LENGTHS, 4))
    assert [s.lengths.tolist() for s in seen] == [[3, 0, 17, 13], [3, 0, 16, 13], [3, 0, 8, 8]]


def test_a_schema_without_events_works() -> None:
    schema = make_schema(())
    model = OneTrans(schema, OneTransConfig(dim=16))
    assert model(make_batch(schema, {}, 3)).shape == (3, 2)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"4 heads do not divide dim \(6\)"):
        OneTransConfig(dim=6)


@pytest.mark.parametrize(
    "key", ["dim", "layers", "heads", "hidden", "tokens", "history", "head_hidden"]
)
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        OneTransConfig(**{key: 0})
