"""Presets, files, overrides; every refusal is one clear line."""

from __future__ import annotations

import dataclasses

import pytest

from kunlun.errors import ConfigError
from kunlun.training.config import TrainConfig, load_run_config, presets


def test_every_preset_loads():
    assert {"demo", "small", "base"} <= set(presets())
    for name in presets():
        config = load_run_config(name, ["data=somewhere"])
        assert config.name == name


def test_overrides_reach_the_model_and_training():
    config = load_run_config("demo", ["train.lr=0.5", "model.dim=16", "name=mine"])
    assert (config.train.lr, config.model["dim"], config.name) == (0.5, 16, "mine")


def test_a_file_lends_its_name(tmp_path):
    file = tmp_path / "trial.yaml"
    file.write_text("data: d\nmodel: {name: kunlun, dim: 8}\n")
    assert load_run_config(file).name == "trial"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "dmo",
            [],
            r"'dmo' is neither a preset nor a YAML file; did you mean 'demo'\? presets: .*ba",
        ),
        ("gone.yaml", [], r"gone\.yaml: no such file"),
        ("small", [], r"small: data is missing; add data=DIR"),
        ("demo", ["model.name=kunlum"], r"demo: model\.name 'kunlum' .*did you mean 'kunlun'\?"),
        (
            "demo",
            ["model.layrs=3"],
            r"demo: model: layrs is not a field of KunlunConfig; did you mean",
        ),
        (
            "demo",
            ["train.lrr=3"],
            r"demo: train\.lrr is not a field of TrainConfig; did you mean 'lr'",
        ),
        ("demo", ["train.lr=fast"], r"demo: train\.lr is 'fast'"),
        ("demo", ["train.lr=-1"], r"demo: train\.lr is -1\.0, expected more than 0"),
        ("demo", ["name=a/b"], r"name is 'a/b', expected one directory name"),
    ],
)
def test_refusals(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_run_config(name, overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"train\.batch_size is 0, expected more than 0"),
        ({"warmup": 1.5}, r"train\.warmup is 1\.5, expected 0 to 1"),
        ({"workers": -1}, r"train\.workers is -1, expected 0 or more"),
        ({"seed": -1}, r"train\.seed is -1, expected 0 to 9223372036854775807"),
        ({"seed": 2**63}, r"train\.seed is 9223372036854775808, expected 0 to 9223372036854775807"),
        ({"ema": 1.0}, r"train\.ema is 1\.0, expected between 0 and 1"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**changes)


NUMBERS = [f.name for f in dataclasses.fields(TrainConfig) if "float" in str(f.type)]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite(name, value):
    assert len(NUMBERS) == 10
    with pytest.raises(
        ConfigError, match=rf"demo: train\.{name} is -?(nan|inf), expected a finite"
    ):
        load_run_config("demo", [f"train.{name}={value}"])


def test_text_that_pydantic_reads_as_a_number_must_be_finite_too():
    with pytest.raises(ConfigError, match=r"train\.lr is nan, expected a finite number"):
        load_run_config("demo", ["train.lr=nan"])
