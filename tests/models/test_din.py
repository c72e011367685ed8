"""DIN against an implementation of its own, from the equations of arXiv 1706.06978."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.din import DIN, DINConfig
from tests.models import plain
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}


def equations(w: plain.Weights, tokens: Tensor, events, candidate: list[int], cap: int) -> Tensor:
    out = []
    for i in range(len(tokens)):
        x = plain.norm(tokens[i].flatten()).view_as(tokens[i])
        target = x[candidate].flatten()
        interests = [plain.interest(w, kind, target, events, i, cap) for kind in events]
        deep = plain.mlp(w, "deep", torch.cat([x.flatten(), *interests]))
        out.append(F.gelu(deep, approximate="tanh")[None])
    return torch.stack(out)


def test_din_against_equations() -> None:
    schema = make_schema()
    torch.manual_seed(0)
    model = DIN(schema, DINConfig(dim=8, attention=5, hidden=6))
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    names = [field.token for field in model.embedding.fields]
    candidate = [names.index(n) for n in ("item_id", "tags", "numeric")]
    expected = equations(parameters(model.backbone), *inputs, sorted(candidate), 12)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    unit = 3 * 8 * 8 + plain.mlp_size(4 * 8, 5, 1)
    deep = plain.mlp_size((inputs[0].shape[1] + 2) * 8, 6, 6)
    assert sum(p.numel() for p in model.backbone.parameters()) == 2 * unit + 64 * 8 + deep


def test_twice_the_same_history_is_twice_the_interest() -> None:
    """A softmax would forget how often something happened."""
    schema = make_schema(("click",))
    torch.manual_seed(0)
    model = DIN(schema, DINConfig(dim=8))
    tokens, events = backbone_inputs(model, make_batch(schema, {"click": [4, 2]}, 2))
    s, _ = events["click"]
    values, offsets = [s.values[:4], s.values[:4], s.values[4:]], torch.tensor([0, 8, 10])
    twice = type(s)(torch.cat(values), offsets, s.max_len)
    attention = model.backbone.double().interests.attention["click"]
    candidate = tokens[:, model.backbone.interests.candidate]
    once = attention(s, candidate)
    expected = once * torch.tensor([[2.0], [1.0]])
    torch.testing.assert_close(attention(twice, candidate), expected.double())


@pytest.mark.parametrize("key", ["dim", "attention", "hidden", "head_hidden"])
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        DINConfig(**{key: 0})
