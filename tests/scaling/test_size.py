"""A budget is met by every model, with valid widths, and costs nothing to look for."""

from __future__ import annotations

import math

import pytest
import torch

from kunlun.errors import ConfigError
from kunlun.models import MODELS
from kunlun.models.flops import count
from kunlun.models.io import build
from kunlun.scaling import size
from kunlun.training import source

DEFAULTS = {name: {"name": name} for name in MODELS}


@pytest.fixture(scope="module")
def dataset(place):
    return source.open_data(str(place))


@pytest.fixture(scope="module")
def lengths(dataset):
    return size.typical_lengths(dataset)


@pytest.mark.parametrize("budget", [3e5, 1e6, 5e6])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_meets_a_budget_of_flops(name, budget, dataset, lengths) -> None:
    def measure(section):
        return size.cost(dataset, section, lengths, name).flops

    found = size.fit(DEFAULTS[name], budget, measure, name)
    built = build(dataset.schema, found, name)
    flops = sum(row.flops for row in count(built, lengths))
    assert flops == pytest.approx(budget, rel=size.TOLERANCE)
    changed = size.changed(DEFAULTS[name], found)
    assert all(key.startswith("model.") for key in changed)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_meets_a_budget_of_parameters(name, dataset, lengths) -> None:
    found = size.fit(
        DEFAULTS[name],
        2e5,
        lambda s: size.cost(dataset, s, lengths, name).dense_params,
        name,
    )
    built = build(dataset.schema, found, name)
    tables = sum(p.numel() for p in built.embedding.tables.parameters())
    dense = sum(p.numel() for p in built.parameters()) - tables
    assert dense == pytest.approx(2e5, rel=size.TOLERANCE)


def test_cost_is_that_of_the_built_model(config, dataset, lengths) -> None:
    found = size.cost(dataset, config.model, lengths, "x")
    built = build(dataset.schema, config.model, "x")
    rows = count(built, lengths)
    assert found.flops == sum(row.flops for row in rows)
    assert found.params == sum(p.numel() for p in built.parameters())
    tables = sum(p.numel() for p in built.embedding.tables.parameters())
    assert found.dense_params == found.params - tables


def test_cost_leaves_random_numbers_alone(config, dataset, lengths) -> None:
    before = torch.get_rng_state()
    size.cost(dataset, config.model, lengths, "x")
    assert torch.equal(torch.get_rng_state(), before)


def test_lengths_are_the_same_each_time(dataset, lengths) -> None:
    again = size.typical_lengths(dataset)
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in lengths.items()}


def test_widths_keep_heads_even(config, dataset, lengths) -> None:
    section = {**config.model, "events": {"click": {"dim": 24, "heads": 3}}}
    seen = []

    def measure(candidate):
        seen.append(candidate)
        return size.cost(dataset, candidate, lengths, "x").flops

    size.fit(section, 4 * measure(section), measure, "x")
    for candidate in seen[1:]:
        assert candidate["tower"]["dim"] % 4 == 0
        assert candidate["events"]["click"]["dim"] % 6 == 0
    assert seen[-1]["events"]["click"]["dim"] > 24


def test_a_fitting_configuration_stays_as_it_is() -> None:
    section = {"name": "dcnv2", "dim": 48}
    found = size.fit(section, 100.0, lambda s: 104.0, "x")
    assert size.changed(section, found) == {}


def test_depth_moves_only_if_widths_do_not_reach() -> None:
    def by_depth(section):
        return 100.0 * section["layers"]

    found = size.fit({"name": "dcnv2", "layers": 3}, 500.0, by_depth, "x")
    assert found["layers"] == 5

    def by_width(section):
        return float(section["dim"] * section["layers"])

    found = size.fit({"name": "dcnv2", "layers": 3, "dim": 64}, 600.0, by_width, "x")
    assert (found["layers"], found["dim"]) == (3, 196)


def test_sizes_that_cannot_be_built_are_passed_over() -> None:
    def measure(section):
        if section["dim"] > 80:
            raise ConfigError("too wide")
        return float(section["dim"] * section["layers"])

    found = size.fit({"name": "dcnv2", "layers": 3, "dim": 64}, 300.0, measure, "x")
    assert found["dim"] <= 80
    assert found["dim"] * found["layers"] == pytest.approx(300, rel=0.05)


def test_an_unreachable_budget_names_the_nearest(dataset, lengths) -> None:
    def steps(section):
        return 10.0 ** math.floor(math.log10(section["dim"] * section["hidden"]))

    with pytest.raises(ConfigError, match="x: no size within 5% of 3e") as caught:
        size.fit({"name": "dlrm"}, 3e4, steps, "x")
    assert "the nearest it reaches: 1e+04 and 1e+05" in str(caught.value)


def test_a_section_that_cannot_be_built_says_so(config, dataset, lengths) -> None:
    section = {**config.model, "interaction": {"experts": 99}}
    with pytest.raises(ConfigError, match=r"x: model.interaction.experts \(99\) must not exceed"):
        size.cost(dataset, section, lengths, "x")
