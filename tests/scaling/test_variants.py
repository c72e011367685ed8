"""Which models a comparison holds."""

from __future__ import annotations

import dataclasses

import pytest

from kunlun.errors import ConfigError
from kunlun.models.io import resolve
from kunlun.scaling import variants


def test_own_model_as_configured_others_with_defaults(config) -> None:
    own, other = variants.choose(config, ["kunlun", "dcnv2"])
    assert own.model == config.model
    assert other.model == {"name": "dcnv2"}
    run = other.run_config(config, 7)
    assert (run.name, run.train.seed, run.data) == ("dcnv2-seed7", 7, config.data)
    assert dataclasses.replace(run.train, seed=config.train.seed) == config.train


def test_a_file_brings_its_model_and_its_training(config, tmp_path) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text("model: {name: dcnv2, dim: 24}\ntrain: {lr: 0.01}\n")
    (found,) = variants.choose(config, [str(file)])
    run = found.run_config(config, 0)
    assert (found.name, found.model) == ("tuned", {"name": "dcnv2", "dim": 24})
    assert (run.train.lr, run.train.batch_size) == (0.01, config.train.batch_size)


@pytest.mark.parametrize("name", variants.ABLATIONS)
def test_each_ablation_changes_kunlun_and_nothing_else(name, config) -> None:
    config = dataclasses.replace(config, model={**config.model, "events": {"click": {"dim": 8}}})
    (found,) = variants.choose(config, [name])
    before, after = (resolve(s, "x")[1].to_dict() for s in (config.model, found.model))
    assert len(found.changed) == 1
    if name != "experts_2":  # what the configuration has
        assert before != after


def test_a_tower_switch_reaches_event_types_of_their_own(config) -> None:
    events = {"click": {"window": 3, "dim": 8, "ffn": {"kind": "gdpa", "rows": 2}}}
    config = dataclasses.replace(config, model={**config.model, "events": events})
    full, plain = variants.choose(config, ["full_attention", "plain_ffn"])
    assert full.model["events"] == {"click": {"dim": 8, "ffn": {"kind": "gdpa", "rows": 2}}}
    assert plain.model["events"]["click"] == {"window": 3, "dim": 8, "ffn": {"rows": 2}}
    assert config.model["events"] == events


def test_a_wrong_group_of_an_event_type_is_left_to_the_model(config) -> None:
    config = dataclasses.replace(config, model={**config.model, "events": {"click": {"ffn": "x"}}})
    kept, _ = variants.ablations(config)
    assert all(v.model["events"] in ({}, {"click": {"ffn": "x"}}) for v in kept)


def test_ablations_leave_out_what_changes_nothing(config) -> None:
    kept, left_out = variants.ablations(config)
    assert [kept[0].name, kept[0].model] == ["kunlun", config.model]
    assert {"experts_2", "one_tower_for_all"} == set(left_out)
    assert {v.name for v in kept[1:]} | set(left_out) == set(variants.ABLATIONS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["kunlum"], "'kunlum' does not exist; did you mean 'kunlun'?"),
        (["kunlun", "kunlun"], "names 'kunlun' twice"),
        (["none.yaml"], "none.yaml: no such file"),
        (["wrong.yaml"], "wrong.yaml: data is not compared by; expected model, train"),
        (["odd.yaml"], "model is 3, expected a group of keys"),
        (["key.yaml"], "did you mean 'dim'"),
        (["rate.yaml"], "train.lr is -1"),
        (["longer.yaml"], "longer.yaml: train.epochs: all train on the same samples; leave it out"),
        (["batch.yaml"], "batch.yaml: train.batch_size: all train on the same samples, and with"),
    ],
)
def test_wrong_names(names, message, config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("data: x\n")
    (tmp_path / "odd.yaml").write_text("model: 3\n")
    (tmp_path / "key.yaml").write_text("model: {name: dcnv2, dimm: 3}\n")
    (tmp_path / "rate.yaml").write_text("train: {lr: -1}\n")
    (tmp_path / "longer.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "batch.yaml").write_text("train: {batch_size: 8}\n")
    with pytest.raises(ConfigError) as caught:
        variants.choose(config, names)
    assert message in str(caught.value)


def test_ablations_are_of_kunlun(config) -> None:
    config = dataclasses.replace(config, model={"name": "dcnv2"})
    with pytest.raises(ConfigError, match="switches of kunlun, the configuration's model is dcnv2"):
        variants.ablations(config)
