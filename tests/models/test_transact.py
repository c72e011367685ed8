"""TransAct and BST against torch's own transformer and a loop over samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.transact import BST, BSTConfig, TransAct, TransActConfig
from kunlun.ops.jagged import Jagged
from tests.models import merged
from tests.models.plain import Weights
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}
CANDIDATE = [1, 3, 4]  # item_id, tags, and the numbers, which hold the price
TINY: dict[str, Any] = {"dim": 8, "hidden": 6, "layers": 2, "newest": 3}


def transformer(w: Weights, layers: int, heads: int, x: Tensor) -> Tensor:
    """[T, width] through torch's TransformerEncoderLayer with our weights."""
    names = {
        "self_attn.in_proj": "qkv", "self_attn.out_proj": "out", "linear1": "up",
        "linear2": "down", "norm1": "norm1", "norm2": "norm2",
    }  # fmt: skip
    for i in range(layers):
        width, hidden = x.shape[1], w[f"layers.{i}.up.weight"].shape[0]
        layer = torch.nn.TransformerEncoderLayer(width, heads, hidden, dropout=0, batch_first=True)
        state = {}
        for theirs, ours in names.items():
            joint = "_" if theirs.endswith("in_proj") else "."
            for part in ("weight", "bias"):
                state[f"{theirs}{joint}{part}"] = w[f"layers.{i}.{ours}.{part}"]
        layer = layer.double()
        layer.load_state_dict(state)
        x = layer(x[None])[0]
    return x.detach()


def equations(w: Weights, tokens: Tensor, events, config: TransActConfig, beside: bool) -> Tensor:
    out = []
    for i in range(len(tokens)):
        rows, _ = merged.merged_row(w, events, i, ages=True, history=config.history)
        c = merged.candidate_of(w, tokens[i], CANDIDATE)
        rows = [torch.cat([x, c]) for x in rows] if beside else [*rows, c + w["kind"]]
        count, width = config.newest + (not beside), (1 + beside) * config.dim
        kept = [torch.zeros(width).double()] * count
        top = torch.zeros(width).double()
        if rows:
            x = transformer(w, config.layers, config.heads, torch.stack(rows))
            kept = [*x.flip(0)[:count], *kept][:count]
            top = x.max(0).values
        found = torch.cat([*kept, *([top] if beside else [])]).view(-1, config.dim)
        out.append(torch.cat([merged.unit_context(tokens[i]), found]))
    return torch.stack(out)


def layer_size(width: int, hidden: int) -> int:
    return 4 * width * (width + 1) + (width + 1) * hidden + (hidden + 1) * width + 4 * width


@pytest.mark.parametrize("history", [None, 7])
@pytest.mark.parametrize("beside", [True, False], ids=["transact", "bst"])
def test_transact_and_bst_against_equations(beside: bool, history: int | None) -> None:
    torch.manual_seed(0)
    schema = make_schema()
    kind, config_kind = (TransAct, TransActConfig) if beside else (BST, BSTConfig)
    config = config_kind(**TINY, history=history)
    model = kind(schema, config)
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    for p in model.backbone.parameters():  # no bias and no gain that happens to be neutral
        torch.nn.init.normal_(p, std=0.3)
    expected = equations(parameters(model.backbone), *inputs, config, beside)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    marks = (2 + 64) * 8 + (0 if beside else 8)
    layers = 2 * layer_size(16 if beside else 8, 6)
    assert sum(p.numel() for p in model.backbone.parameters()) == 3 * 8 * 8 + marks + layers


def test_bst_is_one_layer_with_the_candidate_behind() -> None:
    model = BST(make_schema(), BSTConfig())
    assert len(model.backbone.layers) == 1
    seen: list[Jagged] = []
    model.backbone.layers[0].register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    model(make_batch(model.schema, LENGTHS, 4))
    assert seen[0].lengths.tolist() == [4, 1, 18, 14]


@pytest.mark.parametrize("kind", [TransAct, BST])
def test_a_schema_without_events_works(kind: type[TransAct]) -> None:
    schema = make_schema(())
    config = (BSTConfig if kind is BST else TransActConfig)(dim=16)
    assert kind(schema, config)(make_batch(schema, {}, 3)).shape == (3, 2)


def test_heads_must_divide_the_width() -> None:
    TransActConfig(dim=6, heads=4)  # the candidate beside doubles the width
    with pytest.raises(ConfigError, match="4 heads do not divide the transformer's width 6"):
        BSTConfig(dim=6, heads=4)


@pytest.mark.parametrize(
    "key", ["dim", "layers", "heads", "hidden", "newest", "history", "head_hidden"]
)
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        TransActConfig(**{key: 0})
