"""InterFormer against an implementation of its own, from the equations of arXiv 2411.09852."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kunlun.errors import ConfigError
from kunlun.layers.personalized_ffn import PersonalizedFFNConfig
from kunlun.models.flops import count, lengths_of
from kunlun.models.interformer import InterFormer, InterFormerConfig
from kunlun.models.masknet import side_by_side
from kunlun.ops.jagged import Jagged
from tests.models import merged, plain
from tests.models.flat import Flat, flat_inputs
from tests.models.samples import backbone_inputs, make_batch, make_schema, parameters

LENGTHS = {"click": [3, 0, 12, 1, 0], "view": [0, 0, 5, 12, 1]}
SMALL = {"dim": 8, "layers": 2, "heads": 2, "n_sum": 3, "rank": 5, "hidden": 6}
SWITCHES: dict[str, dict[str, Any]] = {
    "paper": {},
    "gdpa": {"pffn": "gdpa"},
    "dot": {"interaction": "dot"},
    "dcnv2": {"interaction": "dcnv2"},
    "masknet": {"merge": "masknet"},
    "one_layer": {"layers": 1},
    "sums": {"reduce": "sum"},
    "short": {"history": 5},
    "short_masknet": {"history": 5, "merge": "masknet"},
}


def make(**changes: Any) -> InterFormer:
    torch.manual_seed(0)
    return InterFormer(make_schema(), InterFormerConfig(**SMALL | changes))


def equations(w: plain.Weights, tokens: Tensor, events, config: InterFormerConfig) -> Tensor:
    out = []
    for i in range(len(tokens)):
        x = plain.norm(tokens[i].flatten()).view_as(tokens[i])
        merge = _masknet if config.merge == "masknet" else _by_time
        s = merge(w, events, i, config.history)
        for layer in range(config.layers):
            prefix = f"layers.{layer}."
            part = {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}
            x_sum = _x_sum(part, x)
            if layer == 0:
                s = torch.cat([x_sum, plain.norm(s)])
            s_sum = _s_sum(part, s, config)
            x, s = (
                _interaction(part, torch.cat([x, s_sum]), config),
                _attention(part, _pffn(part, s, x_sum, config), config.heads),
            )
        out.append(torch.cat([_x_sum(w, x), _s_sum(w, s, config)]))
    return torch.stack(out)


def _by_time(w: plain.Weights, events, i: int, history: int | None) -> Tensor:
    rows, _ = merged.merged_row(w, events, i, ages=True, history=history, at="merge")
    return torch.stack(rows) if rows else w["merge.kind"][:0]


def _masknet(w: plain.Weights, events, i: int, history: int | None) -> Tensor:
    histories = []
    for s, age in events.values():
        span = slice(int(s.offsets[i]), int(s.offsets[i + 1]))
        buckets = [plain.half_octaves(float(a)) for a in age[span]]
        histories.append((s.values[span] + w["merge.age"][buckets])[-(history or 12) :])
    longest = max(len(h) for h in histories)
    padded = [torch.cat([h.new_zeros(longest - len(h), h.shape[1]), h]) for h in histories]
    z = plain.norm(torch.cat(padded, dim=1))
    return plain.mlp(w, "merge.lce", z * plain.mlp(w, "merge.mask", z))


def _x_sum(w: plain.Weights, x: Tensor) -> Tensor:
    y = plain.mlp(w, "context.mlp", plain.norm(w["context.compress"] @ x))
    return y * torch.sigmoid(plain.mlp(w, "context.gate", y))


def _s_sum(w: plain.Weights, s: Tensor, config: InterFormerConfig) -> Tensor:
    cls, rest = s[: config.n_sum], s[config.n_sum :]
    newest = rest.flip(0)[: config.recent]
    newest = torch.cat([newest, newest.new_zeros(config.recent - len(newest), s.shape[1])])
    q = plain.norm(w["summary.pma.seeds"]) @ w["summary.pma.query.weight"].T
    k, v = (plain.norm(s) @ w["summary.pma.key_value.weight"].T).chunk(2, dim=1)
    pma = _softmax_heads(q, k, v, config.heads) @ w["summary.pma.compress.weight"].T
    y = plain.norm(torch.cat([cls, pma + w["summary.pma.default"], newest]))
    if config.reduce == "sum":
        longest = 12 if config.merge == "masknet" else 24
        y[config.n_sum : config.n_sum + config.pma] *= len(rest) / longest**0.5
    return y * torch.sigmoid(plain.mlp(w, "summary.gate", y))


def _softmax_heads(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    parts = zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True)
    return torch.cat([F.softmax(a @ b.T / a.shape[1] ** 0.5, 1) @ c for a, b, c in parts], dim=1)


def _interaction(w: plain.Weights, z: Tensor, config: InterFormerConfig) -> Tensor:
    total, flat = torch.zeros(()), z.flatten()
    if config.interaction in ("dot", "dhen"):
        n = len(z)
        dots = [z[a] @ z[b] / z.shape[1] ** 0.5 for a in range(n) for b in range(a + 1, n)]
        total = total + plain.mlp(w, "interaction.of_dots", torch.stack(dots))
    if config.interaction in ("dcnv2", "dhen"):
        weight = w["interaction.cross.up.weight"] @ w["interaction.cross.down.weight"]
        crossed = flat * (weight @ flat + w["interaction.cross.up.bias"]) + flat
        total = total + plain.mlp(w, "interaction.of_cross", crossed)
    x = total.view(-1, z.shape[1])
    if config.interaction == "dhen":
        x = plain.norm(x + w["interaction.shortcut"] @ z)
        x = x * w["interaction.norm.weight"] + w["interaction.norm.bias"]
    return x


def _pffn(w: plain.Weights, s: Tensor, x_sum: Tensor, config: InterFormerConfig) -> Tensor:
    u = plain.norm(s)
    if config.pffn == "generated":
        matrix = x_sum.T @ w["pffn.w_p"]  # [d, d], as the paper's appendix writes it
        return s + u @ matrix.T
    rows = w["pffn.expand"] @ x_sum
    rows = rows / (rows.square().mean(1, keepdim=True) + 1e-5).sqrt()
    heads = []
    for head in range(config.heads):
        part = slice(head * s.shape[1] // config.heads, (head + 1) * s.shape[1] // config.heads)
        k = rows @ w["pffn.key"][:, part]
        v = rows @ w["pffn.value"][:, part] * w["pffn.gain"][head]
        scores = u[:, part] @ k.T / (24 + config.n_sum)  # the longest merged sequence
        heads.append(F.gelu(scores, approximate="tanh") @ v)
    y = torch.cat(heads, dim=1) + u
    return s + y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt()


def _attention(w: plain.Weights, s: Tensor, heads: int) -> Tensor:
    q, k, v = (plain.norm(s) @ w["attention.qkv.weight"].T).chunk(3, dim=1)
    y = _softmax_heads(_rope(q, heads), _rope(k, heads), v, heads)
    return s + y @ w["attention.out.weight"].T


def _rope(x: Tensor, heads: int) -> Tensor:
    """Pairs of channels turned by position, the newest event at 0."""
    width = x.shape[1] // heads
    position = torch.arange(len(x)).flip(0).double()
    theta = 10000 ** (-torch.arange(0, width, 2).double() / width)
    angle = (position[:, None] * theta)[:, None]
    a, b = x.view(len(x), heads, -1, 2).unbind(-1)
    turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
    return torch.stack(turned, dim=-1).view_as(x)


def _size(n: int, config: InterFormerConfig) -> int:
    d, k, r = config.dim, config.n_sum, config.recent
    gate = plain.mlp_size(d, 2 * d, d)
    cross_arch = k * n + 2 * gate + 2 * config.pma * d + 4 * d * d + gate
    m, flat = n + k + config.pma + r, (n + k + config.pma + r) * d
    dots = plain.mlp_size(m * (m - 1) // 2, config.hidden, n * d)
    cross = 2 * flat * config.rank + flat + plain.mlp_size(flat, config.hidden, n * d)
    interaction = {"dot": dots, "dcnv2": cross, "dhen": dots + cross + n * m + 2 * d}
    rows = config.gdpa.rows
    pffn = {"generated": k * d, "gdpa": rows * k + 2 * d * d + config.heads}
    layer = cross_arch + interaction[config.interaction] + pffn[config.pffn] + 4 * d * d
    wide = plain.mlp_size(2 * d, 2 * d, 2 * d) + plain.mlp_size(2 * d, d, d)
    merge = {"time": 2 * d, "masknet": wide}[config.merge] + 64 * d
    return merge + config.layers * layer + cross_arch


@pytest.mark.parametrize("name", SWITCHES)
def test_interformer_against_equations(name: str) -> None:
    model = make(**SWITCHES[name])
    for p in model.backbone.parameters():  # norms start at 1 and 0, which would hide their place
        p.data += 0.1 * torch.randn_like(p)
    inputs = backbone_inputs(model, make_batch(model.schema, LENGTHS, 5))
    expected = equations(parameters(model.backbone), *inputs, model.config)
    actual = model.backbone.double()(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    count = sum(p.numel() for p in model.backbone.parameters())
    assert count == _size(inputs[0].shape[1], model.config)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_trains_and_counts(name: str) -> None:
    model = make(**SWITCHES[name])
    batch = make_batch(model.schema, LENGTHS, 5)
    with FlopCounterMode(display=False) as counter:
        logits = model(batch)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    planned = 5 * sum(row.flops for row in count(model, lengths_of(batch)))
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_archs_of_a_layer_do_not_wait_for_each_other() -> None:
    """Both read what the layer was given: with one layer no event meets another but by PMA."""
    model = make(layers=1)
    layer = model.backbone.layers[0]
    seen: list[Tensor] = []
    layer.interaction.register_forward_hook(lambda _m, _args, out: seen.append(out.detach()))
    batch = make_batch(model.schema, LENGTHS, 5)
    model(batch)
    with torch.no_grad():
        layer.attention.out.weight.mul_(3)
        layer.pffn.w_p.mul_(3)
    model(batch)
    assert torch.equal(seen[0], seen[1])


def test_side_by_side_aligns_the_newest() -> None:
    a = Jagged(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 3, 3]), 4)
    b = Jagged(torch.tensor([[7.0], [8.0]]), torch.tensor([0, 1, 1, 2]), 4)
    ages = torch.tensor([20.0, 10.0, 5.0]), torch.tensor([15.0, 1.0])
    merged, age = side_by_side({"a": (a, ages[0]), "b": (b, ages[1])}, 4)
    assert merged.values.tolist() == [[1, 0], [2, 7], [3, 0], [0, 8]]
    assert merged.offsets.tolist() == [0, 2, 3, 4]
    assert age.tolist() == [20, 10, 5, 1]


def test_masknet_exports_with_any_number_of_rows_and_events() -> None:
    model = make(merge="masknet", layers=1)
    flat, any_size = Flat(model), torch.export.Dim.DYNAMIC
    inputs = flat_inputs(model, make_batch(model.schema, LENGTHS, 5))
    dynamic = ({0: any_size}, *([{0: any_size}] * 2 for _ in range(3)))
    program = torch.export.export(flat, inputs, dynamic_shapes=dynamic).module()
    other = {"click": [0, 4, 9], "view": [12, 0, 3]}
    inputs = flat_inputs(model, make_batch(model.schema, other, 3))
    torch.testing.assert_close(program(*inputs), flat(*inputs), atol=1e-5, rtol=0)


def test_masknet_needs_equally_long_event_types() -> None:
    schema = make_schema()
    events = dict(schema.events)
    events["view"] = dataclasses.replace(events["view"], max_len=7)
    schema = dataclasses.replace(schema, events=events)
    with pytest.raises(ConfigError, match=r"masknet needs event types of one max_len.*'view': 7"):
        InterFormer(schema, InterFormerConfig(**SMALL, merge="masknet"))


def test_masknet_needs_events() -> None:
    with pytest.raises(ConfigError, match="masknet needs event types of one max_len"):
        InterFormer(make_schema(()), InterFormerConfig(**SMALL, merge="masknet"))


def test_model_without_events_works() -> None:
    schema = make_schema(())
    model = InterFormer(schema, InterFormerConfig(**SMALL))
    assert model(make_batch(schema, {}, 3)).shape == (3, 2)


def test_head_width_must_be_even() -> None:
    with pytest.raises(ConfigError, match=r"dim \(6\) over heads \(2\) must be an even"):
        InterFormerConfig(dim=6, heads=2)


@pytest.mark.parametrize(
    "key",
    ["dim", "layers", "heads", "n_sum", "pma", "recent", "rank", "hidden", "head_hidden"],
)
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0, expected 1 or more"):
        InterFormerConfig(**{key: 0})


@pytest.mark.parametrize("kind", ["plain", "none"])
def test_kinds_of_gdpa_it_has_no_part_for_are_refused(kind: str) -> None:
    gdpa = PersonalizedFFNConfig(kind=kind)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"model.gdpa.kind is '{kind}'"):
        InterFormerConfig(pffn="gdpa", gdpa=gdpa)
