"""DLRM against an implementation of its own, from the equations of arXiv 1906.00091."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.dlrm import DLRM, DLRMConfig
from tests.models import plain
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}


def equations(w: plain.Weights, tokens: Tensor, events, numbers: int | None) -> Tensor:
    out = []
    for i in range(len(tokens)):
        x = list(plain.with_sums(w, tokens, events, i, 12))
        dense = []
        if numbers is not None:
            x[numbers] = plain.mlp(w, "bottom", x[numbers])
            dense = list(x[numbers])
        pairs = [
            x[a] @ x[b] / len(x[a]) ** 0.5 for a in range(len(x)) for b in range(a + 1, len(x))
        ]
        top = plain.mlp(w, "top", torch.stack([*dense, *pairs]))
        out.append(F.gelu(top, approximate="tanh")[None])
    return torch.stack(out)


@pytest.mark.parametrize("numbers", [True, False], ids=["numbers", "ids_only"])
def test_dlrm_against_equations(numbers: bool) -> None:
    schema = make_schema()
    if not numbers:
        ids = {k: f for k, f in schema.features.items() if k not in ("price", "ctr")}
        events = {k: dataclasses.replace(e, item_features=[]) for k, e in schema.events.items()}
        schema = dataclasses.replace(schema, features=ids, events=events)
    torch.manual_seed(0)
    model = DLRM(schema, DLRMConfig(dim=8, hidden=6))
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    names = [field.token for field in model.embedding.fields]
    place = names.index("numeric") if numbers else None
    expected = equations(parameters(model.backbone), *inputs, place)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    n = inputs[0].shape[1] + 2
    dense = 8 if numbers else 0
    bottom = plain.mlp_size(8, 6, 8) if numbers else 0
    top = plain.mlp_size(dense + n * (n - 1) // 2, 6, 6)
    assert sum(p.numel() for p in model.backbone.parameters()) == bottom + top + 2 * 64 * 8


def test_one_field_has_no_pairs() -> None:
    schema = make_schema(())
    schema = dataclasses.replace(schema, features={"user_id": schema.features["user_id"]})
    with pytest.raises(
        ConfigError, match="multiplies pairs of fields, but the schema has only one"
    ):
        DLRM(schema, DLRMConfig())


@pytest.mark.parametrize("key", ["dim", "hidden", "head_hidden"])
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        DLRMConfig(**{key: 0})
