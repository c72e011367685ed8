"""HSTU against an implementation of its own, from the equations of arXiv 2402.17152."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.hstu import HSTU, HSTUConfig
from kunlun.ops.jagged import Jagged
from tests.models import merged, plain
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1], "view": [0, 0, 5, 12]}
TINY: dict[str, Any] = {"dim": 8, "heads": 2, "layers": 2, "positions": 5, "times": 40}


def layer(
    w: plain.Weights, i: int, s: Tensor, ages: list[float], config: HSTUConfig, longest: int
) -> Tensor:
    """[T, D] -> [T, D], one pair of rows at a time."""
    width = config.dim // config.heads
    parts = F.silu(plain.norm(s) @ w[f"layers.{i}.uvqk.weight"].T)
    u, v, q, k = (part.unflatten(1, (config.heads, width)) for part in parts.chunk(4, dim=1))
    rows = []
    for a in range(len(s)):
        y = torch.zeros(config.heads, width).double()
        for b in range(a + 1):
            if config.window is not None and a - b > config.window:
                continue
            gap = min(merged.half_octaves(abs(ages[b] - ages[a])), config.times - 1)
            rab = w[f"layers.{i}.position"][min(a - b, config.positions - 1)]
            rab = rab + w[f"layers.{i}.time"][gap]
            score = (q[a] * k[b]).sum(1) / width**0.5 + rab
            y = y + F.silu(score)[:, None] * v[b] / longest
        flat = y.flatten()
        centered = flat - flat.mean()
        norm = centered / (centered.square().mean() + 1e-5 / longest**2).sqrt()
        rows.append(s[a] + w[f"layers.{i}.out.weight"] @ (norm * u[a].flatten()))
    return torch.stack(rows)


def equations(w: plain.Weights, tokens: Tensor, events, config: HSTUConfig) -> Tensor:
    longest = (24 if config.history is None else config.history) + 1
    out = []
    for i in range(len(tokens)):
        rows, ages = merged.merged_row(w, events, i, ages=False, history=config.history)
        c = merged.candidate_of(w, tokens[i], list(range(len(tokens[i])))) + w["kind"]
        s = plain.norm(torch.stack([*rows, c]))
        for j in range(config.layers):
            s = layer(w, j, s, [*ages, 0.0], config, longest)
        out.append(torch.cat([merged.unit_context(tokens[i]), plain.norm(s[-1])[None]]))
    return torch.stack(out)


@pytest.mark.parametrize("changes", [{}, {"window": 3}, {"history": 7}], ids=str)
def test_hstu_against_equations(changes: dict[str, int]) -> None:
    torch.manual_seed(0)
    schema, config = make_schema(), HSTUConfig(**TINY, **changes)
    model = HSTU(schema, config)
    for name, p in model.backbone.named_parameters():
        if name.endswith(("position", "time")):  # as large as the scores
            torch.nn.init.normal_(p)
    inputs = backbone_inputs(model, make_batch(schema, LENGTHS, 4))
    expected = equations(parameters(model.backbone), *inputs, config)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    sizes = 5 * 8 * 8 + (2 + 1) * 8 + 2 * (4 * 8 * 8 + 8 * 8 + 5 + 40)
    assert sum(p.numel() for p in model.backbone.parameters()) == sizes


def test_a_short_history_is_not_silenced_by_a_long_cap() -> None:
    """Dividing by N = 4001 must not push A V under the norm's eps."""
    torch.manual_seed(0)
    schema = make_schema(max_len=2000)
    model = HSTU(schema, HSTUConfig(layers=1))
    seen: list[Tensor] = []
    model.backbone.layers[0].out.register_forward_hook(lambda _m, _args, out: seen.append(out))
    with torch.no_grad():
        model(make_batch(schema, {"click": [1, 3], "view": [0, 2]}, 2))
    assert seen[0].square().mean().sqrt() > 0.1


def newest_of(s: Jagged) -> Tensor:
    return s.values[s.newest_places(1)]


def test_layers_do_not_drown_what_enters() -> None:
    """Ids come at rms .02 and a layer's result at about .6."""
    torch.manual_seed(0)
    schema = make_schema()
    model = HSTU(schema, HSTUConfig(dim=16))
    rows: list[Tensor] = []
    for layer_ in model.backbone.layers:
        layer_.register_forward_hook(
            lambda _m, args, out: rows.extend([newest_of(args[0]), newest_of(out)])
        )
    with torch.no_grad():
        model(make_batch(schema, LENGTHS, 4))
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert (after - before).square().mean() < 1.5 * before.square().mean()
    assert F.cosine_similarity(rows[0], rows[-1]).mean() > 0.3


def test_a_row_starts_with_an_average_of_what_it_reads() -> None:
    """With a bias around 0 weights of both signs would cancel."""
    torch.manual_seed(0)
    layer_ = HSTU(make_schema(), HSTUConfig(dim=16)).backbone.layers[0]
    rows = torch.randn(200, 16)
    q, k = F.silu(layer_.uvqk(F.layer_norm(rows, (16,)))).view(200, 4, 4, 4)[:, 2:].unbind(1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / 2 + layer_.position[0] + layer_.time[0]
    assert (F.silu(scores) > 0).float().mean() > 0.95


def test_a_schema_without_events_works() -> None:
    schema = make_schema(())
    assert HSTU(schema, HSTUConfig(dim=16))(make_batch(schema, {}, 3)).shape == (3, 2)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"4 heads do not divide dim \(6\)"):
        HSTUConfig(dim=6)


@pytest.mark.parametrize(
    "key", ["dim", "layers", "heads", "history", "window", "positions", "times", "head_hidden"]
)
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        HSTUConfig(**{key: 0})
