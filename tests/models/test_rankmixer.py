"""RankMixer against an implementation of its own, from the equations of arXiv 2507.15551."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.rankmixer import RankMixer, RankMixerConfig, mix_slices
from tests.models import merged, plain
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}
CANDIDATE = [1, 3, 4]  # item_id, tags, and the numbers, which hold the price
TINY: dict[str, Any] = {"dim": 12, "tokens": 4, "layers": 2, "hidden": 5, "attention": 6}


def affine(w: plain.Weights, name: str, x: Tensor) -> Tensor:
    return plain.norm(x) * w[f"{name}.weight"] + w[f"{name}.bias"]


def layer(w: plain.Weights, i: int, x: Tensor) -> Tensor:
    """[T, D] -> [T, D], token by token."""
    count, dim = x.shape
    slice_of = x.view(count, count, dim // count)
    out = []
    for t in range(count):
        mixed = torch.cat([slice_of[other, t] for other in range(count)])
        s = affine(w, f"layers.{i}.norm1", mixed + x[t])
        up, down = (w[f"layers.{i}.ffn.{part}.weight"][t] for part in ("up", "down"))
        hidden = F.gelu(s @ up + w[f"layers.{i}.ffn.up_bias"][t], approximate="tanh")
        y = hidden @ down + w[f"layers.{i}.ffn.down_bias"][t]
        out.append(affine(w, f"layers.{i}.norm2", y + s))
    return torch.stack(out)


def equations(w: plain.Weights, tokens: Tensor, events, config: RankMixerConfig) -> Tensor:
    out = []
    for i in range(len(tokens)):
        context = merged.unit_context(tokens[i])
        target = torch.cat([context[p] for p in CANDIDATE])
        found = [plain.interest(w, kind, target, events, i, 12) for kind in events]
        flat = torch.cat([*context, *found])
        share = w["split.weight"].shape[1]
        flat = torch.cat([flat, flat.new_zeros(share * config.tokens - len(flat))])
        x = torch.stack(
            [flat[t * share : (t + 1) * share] @ w["split.weight"][t] for t in range(config.tokens)]
        )
        for j in range(config.layers):
            x = layer(w, j, x)
        out.append(x.mean(0)[None])
    return torch.stack(out)


def test_rankmixer_against_equations() -> None:
    torch.manual_seed(0)
    schema, config = make_schema(), RankMixerConfig(**TINY)
    model = RankMixer(schema, config)
    for p in model.backbone.parameters():  # no bias and no gain that happens to be neutral
        torch.nn.init.normal_(p, std=0.3)
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    expected = equations(parameters(model.backbone), *inputs, config)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    share = 21  # 7 vectors of 12 in 4 shares
    unit = 3 * 12 * 12 + plain.mlp_size(4 * 12, 6, 1)
    layers = 2 * (4 * plain.mlp_size(12, 5, 12) + 4 * 12)
    sizes = 2 * unit + 64 * 12 + 4 * share * 12 + layers
    assert sum(p.numel() for p in model.backbone.parameters()) == sizes


def test_mixing_hands_out_slices_and_undoes_itself() -> None:
    x = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]])  # two tokens of two slices
    mixed = mix_slices(x)
    assert mixed.tolist() == [[[1, 2, 5, 6], [3, 4, 7, 8]]]
    assert torch.equal(mix_slices(mixed), x)


def test_a_last_share_may_be_short() -> None:
    schema = make_schema()
    model = RankMixer(schema, RankMixerConfig(dim=15, tokens=5, layers=1))
    assert model.backbone.share * 5 > 7 * 15 - 5
    model = RankMixer(schema, RankMixerConfig(dim=10, tokens=10, layers=1))
    assert model(make_batch(schema, LENGTHS, 4)).shape == (4, 2)


def test_a_schema_without_events_works() -> None:
    schema = make_schema(())
    model = RankMixer(schema, RankMixerConfig(dim=16))
    assert model(make_batch(schema, {}, 3)).shape == (3, 2)


def test_every_token_has_a_slice_for_each() -> None:
    with pytest.raises(ConfigError, match=r"dim \(12\) must be a multiple of tokens \(8\)"):
        RankMixerConfig(dim=12)


@pytest.mark.parametrize("key", ["dim", "layers", "tokens", "hidden", "attention", "head_hidden"])
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        RankMixerConfig(**{key: 0})
