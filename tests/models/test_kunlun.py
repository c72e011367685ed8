"""Kunlun's own promises: CompSkip, towers, switches, and GDPA alive at step 0."""

from __future__ import annotations

import dataclasses
import itertools
from importlib import resources
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from kunlun.config import parse
from kunlun.errors import ConfigError
from kunlun.features.batch import Batch
from kunlun.layers.norm import layer_norm
from kunlun.layers.personalized_ffn import START_RATIO, PersonalizedFFN, PersonalizedFFNConfig
from kunlun.layers.pooling import PoolingConfig, SeedPooling
from kunlun.models.flops import count, lengths_of
from kunlun.models.kunlun import Kunlun, KunlunConfig
from kunlun.ops import gdpa
from kunlun.ops.jagged import Jagged
from tests.models.samples import make_batch, make_schema

LENGTHS = {"click": [3, 0, 12, 1, 7], "view": [0, 2, 5, 12, 1]}
TOWER = {"dim": 16, "heads": 2, "window": 3, "pooling": {"seeds": 6, "tokens": 2, "rank": 2}}


def make(**changes: Any) -> tuple[Kunlun, Batch]:
    """A small model and a batch for it; changes go to the model section."""
    schema = make_schema()
    values = {"dim": 16, "n_sum": 4, "layers": 3, "tower": TOWER} | changes
    torch.manual_seed(0)
    return Kunlun(schema, parse(KunlunConfig, values, "test")), make_batch(schema, LENGTHS, 5)


SWITCHES: dict[str, dict[str, Any]] = {
    "paper": {},
    "one_layer": {"layers": 1},
    "two_layers": {"layers": 2},
    "comp_skip_off": {"comp_skip": False},
    "pooling_first": {"order": "pooling_first"},
    "pooling_first_two_layers": {"order": "pooling_first", "layers": 2},
    "short_tower": {"events": {"view": {"layers": 2, "dim": 8, "history": 4}}},
    "one_expert": {"interaction": {"experts": 1}},
    "four_experts": {"interaction": {"experts": 4}},
    "softmax_ffn": {"tower": TOWER | {"ffn": {"kind": "softmax"}}},
    "plain_ffn": {"tower": TOWER | {"ffn": {"kind": "plain"}}},
    "no_ffn": {"tower": TOWER | {"ffn": {"kind": "none"}}},
    "bare_residual": {"tower": TOWER | {"ffn": {"norm": "bare"}}},
    "scale_sqrt": {"tower": TOWER | {"ffn": {"scale": "sqrt"}}},
    "activation_per_head": {"tower": TOWER | {"ffn": {"activation": ["silu", "relu"]}}},
    "pma": {"tower": TOWER | {"pooling": {"kind": "pma", "tokens": 2}}},
    "linear_compression": {
        "tower": TOWER | {"pooling": {"seeds": 6, "tokens": 2, "compress": "linear"}}
    },
    "sums": {"tower": TOWER | {"pooling": {"seeds": 6, "tokens": 2, "reduce": "sum"}}},
    "full_attention": {"tower": TOWER | {"window": None}},
    "no_attention": {"tower": TOWER | {"attention": "none"}},
    "rope": {"tower": TOWER | {"time": {"mode": "rope"}}},
    "no_time": {"tower": TOWER | {"time": {"mode": "none"}}},
    "ages": {"tower": TOWER | {"ages": True}, "events": {"view": {"dim": 8}}},
    "gap_to_previous": {"tower": TOWER | {"time": {"gap": "previous"}}},
    "gate": {"gate": True},
    "user_only": {"user_only": True},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_trains_and_counts(name: str) -> None:
    model, batch = make(**SWITCHES[name])
    with FlopCounterMode(display=False) as counter:
        logits = model(batch)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    planned = 5 * sum(row.flops for row in count(model, lengths_of(batch)))
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("kind", ["hsp", "pma"])
@pytest.mark.parametrize(("reduce", "ratio"), [("mean", 1.0), ("sum", 3.0)])
def test_only_a_sum_tells_one_event_from_three_like_it(
    kind: str, reduce: str, ratio: float
) -> None:
    torch.manual_seed(0)
    values = {"kind": kind, "seeds": 6, "tokens": 2, "rank": 2, "reduce": reduce}
    pooling = SeedPooling(16, 2, 8, parse(PoolingConfig, values, "test"))
    event = torch.randn(1, 16)
    once = Jagged(event, torch.tensor([0, 1]), 16)
    thrice = Jagged(event.repeat(3, 1), torch.tensor([0, 3]), 16)
    torch.testing.assert_close(pooling(thrice, None), ratio * pooling(once, None))


def test_a_model_is_built_and_run_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Kunlun(make_schema(), parse(KunlunConfig, {"dim": 16, "tower": TOWER}, "test"))
    logits = model(make_batch(make_schema(), LENGTHS, 5).to("meta"))
    assert (logits.device.type, tuple(logits.shape)) == ("meta", (5, 2))
    logits.sum().backward()
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_even_layers_are_global_and_odd_ones_local() -> None:
    model, _ = make(layers=5)
    for i, layer in enumerate(model.backbone.layers):
        tower = layer.tower["click"]
        assert (tower.ffn is not None) == (i % 2 == 0)
        assert (tower.attention is not None) == (i % 2 == 1)
        assert (tower.pooling is not None) == (i % 2 == 0)


def test_a_tower_that_ends_on_a_local_layer_pools_once_more() -> None:
    model, _ = make(layers=3, events={"view": {"layers": 2}})
    assert model.backbone.layers[1].tower["view"].pooling is not None
    assert "view" not in model.backbone.layers[2].tower


def test_comp_skip_saves_flops() -> None:
    total = []
    for skip in (True, False):
        model, batch = make(comp_skip=skip)
        total.append(sum(row.flops for row in count(model, lengths_of(batch))))
    assert total[0] < total[1]


def test_the_candidate_reaches_the_sequence_before_it_is_pooled() -> None:
    model, batch = make(layers=1)
    seen: list[torch.Tensor] = []
    pooling = model.backbone.layers[0].tower["click"].pooling
    pooling.register_forward_hook(lambda _m, args, _out: seen.append(args[0].values.detach()))
    model(batch)
    batch.categorical["item_id"] = (batch.categorical["item_id"] + 1) % 50
    model(batch)
    assert not torch.equal(seen[0], seen[1])


def test_user_only_keeps_the_sequence_blind_to_the_candidate() -> None:
    model, batch = make(user_only=True)
    seen: list[torch.Tensor] = []
    pooling = model.backbone.layers[2].tower["click"].pooling
    pooling.register_forward_hook(lambda _m, args, _out: seen.append(args[0].values.detach()))
    first = model(batch)
    batch.categorical["item_id"] = (batch.categorical["item_id"] + 1) % 50
    assert not torch.equal(model(batch), first)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    "activation", ["gelu_approx", "gelu", "silu", "relu", "relu_square", "raw"]
)
@pytest.mark.parametrize("scale", [1 / 1000, 1 / 50, "sqrt", 1.0], ids=str)
def test_gdpa_is_alive_at_step_0(scale: Any, activation: str) -> None:
    torch.manual_seed(0)
    config = PersonalizedFFNConfig(scale=scale, activation=activation, rows=64)
    ffn = PersonalizedFFN(64, 4, max_len=1000, n_sum=8, context=32, config=config)
    s = Jagged(torch.randn(400, 64) * 3, torch.arange(0, 401, 50), 1000)
    changes = (ffn(s, torch.randn(8, 8, 32)).values - s.values).detach()
    u = layer_norm(s.values)
    plain = u / u.square().mean(1, keepdim=True).sqrt()
    # rms(RMSNorm(u + y) - u) tells how far y moved the direction of u
    moved = (changes - plain).square().mean().sqrt().item()
    assert START_RATIO / 2 < moved < START_RATIO * 2


def test_head_width_must_be_even() -> None:
    with pytest.raises(ConfigError, match=r"dim \(6\) over heads \(2\) must be an even"):
        make(tower={"dim": 6, "heads": 2})


def test_unknown_event_type_and_key_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model.events.clik: no such event type.*click, view"):
        make(events={"clik": {"dim": 8}})
    with pytest.raises(
        ConfigError, match=r"model.events.click: windw is not a field of TowerConfig"
    ):
        make(events={"click": {"windw": 8}})


def test_seeds_must_exceed_tokens() -> None:
    with pytest.raises(ConfigError, match=r"seeds \(2\) must exceed tokens \(8\)"):
        make(tower=TOWER | {"pooling": {"seeds": 2}})


def test_a_shorter_model_history_equals_shorter_data() -> None:
    short, batch = make(tower=TOWER | {"history": 4})
    logits = short(batch)
    for kind, e in batch.events.items():
        keep = torch.cat([torch.arange(max(a, b - 4), b) for a, b in _spans(e.offsets)])
        lengths = [min(4, b - a) for a, b in _spans(e.offsets)]
        batch.events[kind] = type(e)(
            {k: v[keep] for k, v in e.ids.items()}, e.numeric[keep], e.timestamps[keep],
            torch.tensor([0, *lengths]).cumsum(0), e.max_len,
        )  # fmt: skip
    torch.testing.assert_close(short(batch), logits, atol=1e-6, rtol=0)


def _spans(offsets: torch.Tensor) -> list[tuple[int, int]]:
    ends = offsets.tolist()
    return list(itertools.pairwise(ends))


def test_model_without_events_works() -> None:
    schema = make_schema(())
    model = Kunlun(schema, KunlunConfig(dim=16))
    assert model(make_batch(schema, {}, 3)).shape == (3, 2)


def test_gdpa_is_not_softmax() -> None:
    q = torch.randn(3, 1, 4)
    k = torch.randn(2, 1, 4)
    offsets = torch.tensor([0, 3]), torch.tensor([0, 2])
    one = gdpa(q, k, k, *offsets)
    two = gdpa(q, torch.cat([k, k]), torch.cat([k, k]), offsets[0], torch.tensor([0, 4]))
    torch.testing.assert_close(two, 2 * one)  # softmax would leave it unchanged


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ffn": {"kind": "gdpaa"}}, r"model.events.click: ffn.kind is 'gdpaa'; input should be"),
        ({"attention": "windw"}, r"model.events.click: attention is 'windw'"),
        ({"pooling": {"seeds": 2}}, r"model.events.click: .*seeds \(2\) must exceed tokens \(2\)"),
        ({"heads": 0}, r"tower.heads is 0, expected 1 or more"),
        ({"history": -3}, r"tower.history is -3, expected 1 or more"),
        ({"ffn": {"scale": 0}}, r"ffn: scale must not be 0"),
        ({"time": {"t_scale": 0}}, r"t_scale \(0.0\) must exceed 0"),
    ],
    ids=str,
)
def test_a_wrong_override_of_one_event_type_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(events={"click": keys})


@pytest.mark.parametrize("key", ["dim", "layers", "n_sum", "head_hidden"])
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        make(**{key: 0})


@pytest.mark.parametrize("name", ["plain_ffn", "bare_residual", "no_ffn"])
def test_an_ablated_block_does_not_drown_the_events(name: str) -> None:
    """Ids come at rms .02, of which results of unit size would leave nothing."""
    model, batch = make(**SWITCHES[name])
    with torch.no_grad():
        for layer in model.backbone.layers[:2]:
            layer.tower["click"].register_forward_hook(
                lambda _m, args, out: rows.extend([args[0].values, out[0].values])
            )
        rows: list[torch.Tensor] = []
        model(batch)
    assert torch.cosine_similarity(layer_norm(rows[0]), layer_norm(rows[-1])).mean() > 0.5


def test_a_clock_that_runs_ahead_gives_finite_logits() -> None:
    for gap in ("request", "previous"):
        model, batch = make(tower=TOWER | {"time": {"gap": gap}})
        batch.events["click"].timestamps += 10**9
        assert torch.isfinite(model(batch)).all()


def test_user_only_does_not_depend_on_the_order_of_rows_in_a_request() -> None:
    model, batch = make(user_only=True)
    batch.request = torch.tensor([0, 0, 1, 1, 1])  # of the five requests only two have rows
    for name in ("user_id", "hour"):
        batch.categorical[name] = batch.categorical[name][batch.request]
    logits = model(batch)
    order = torch.tensor([1, 0, 4, 2, 3])
    batch.categorical = {k: v[order] for k, v in batch.categorical.items()}
    batch.multi = {k: v.select(order) for k, v in batch.multi.items()}
    batch.numeric, batch.request = batch.numeric[order], batch.request[order]
    torch.testing.assert_close(model(batch), logits[order], atol=1e-6, rtol=0)


def test_user_only_needs_a_user_feature() -> None:
    schema = make_schema()
    features = {k: f for k, f in schema.features.items() if k not in ("user_id", "hour")}
    schema = dataclasses.replace(schema, features=features)
    with pytest.raises(ConfigError, match="no user feature to personalize by"):
        Kunlun(schema, KunlunConfig(user_only=True))


@pytest.mark.parametrize("preset", ["demo", "small", "base", "kuairand"])
def test_a_preset_starts_personalized(preset: str) -> None:
    """At step 0 GDPA moves its query by about .3, by rows that differ between samples."""
    file = resources.files("kunlun") / "presets" / f"{preset}.yaml"
    section = yaml.safe_load(file.read_text())["model"]
    section = {k: v for k, v in section.items() if k not in ("name", "events")}
    torch.manual_seed(0)
    schema = make_schema(max_len=50)
    model = Kunlun(schema, parse(KunlunConfig, section, preset))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    ffn = model.backbone.layers[0].tower["click"].ffn
    ffn.register_forward_hook(lambda _m, args, _out: seen.append((args[0], args[1])))
    with torch.no_grad():
        model(make_batch(schema, {"click": [40] * 32, "view": [40] * 32}, 32))
        s, x_sum = seen[0]
        u = layer_norm(s.values)
        y = ffn._gdpa(u, x_sum, s.offsets).flatten(1)
    ratio = (y.square().mean() / u.square().mean()).sqrt().item()
    assert START_RATIO / 2 < ratio < START_RATIO * 2
    varying = (x_sum - x_sum.mean(0)).square().mean() / x_sum.square().mean()
    assert varying > 0.2


def test_a_history_longer_than_the_data_changes_nothing() -> None:
    """tau_g is the longest history there can be, not the longest asked for."""
    models = [make(tower=TOWER | {"history": history})[0] for history in (None, 1200)]
    scales = [[m.scale for m in x.modules() if isinstance(m, PersonalizedFFN)] for x in models]
    assert scales[0] == scales[1] != []
