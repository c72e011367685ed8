"""Every variant gets the same number of trials; the best on validation enters the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kunlun.errors import ConfigError, NonFiniteError, RunError
from kunlun.report.comparison import page, text
from kunlun.scaling import cell as cells
from kunlun.scaling import compare, tuning, variants
from kunlun.scaling.study import prepare
from kunlun.scaling.trials import read
from kunlun.training import rundir

NAMES = ["kunlun", "dcnv2"]
FILE = """
all:
  - {}
  - train: {table_lr: 0.3}
  - {train: {lr: 0.01}, model: {tower: {window: 2, ffn: {rows: 8}}}}
dcnv2:
  - {}
  - {train: {table_lr: 0.3}}
  - {train: {lr: 0.01}, model: {layers: 3}}
"""


@pytest.fixture
def write(tmp_path):
    """Text -> a file of trials."""

    def to(text: str) -> Path:
        (tmp_path / "tries.yaml").write_text(text)
        return tmp_path / "tries.yaml"

    return to


@pytest.fixture
def one_epoch(config):
    """Without max_steps, so that trials may differ in batch_size."""
    train = dataclasses.replace(config.train, max_steps=None)
    return dataclasses.replace(config, train=train)


def test_lists_become_variants(config, write) -> None:
    found = read(write(FILE), config, variants.choose(config, NAMES))
    assert [[t.variant.name for t in own] for own in found.values()] == [
        [f"{name}-trial{n}" for n in (1, 2, 3)] for name in NAMES
    ]
    configured, tables, both = found["kunlun"]
    assert configured.changes() == {}
    assert configured.variant.model == {"name": "kunlun", **config.model}
    assert tables.variant.run_config(config, 7).train.table_lr == 0.3
    assert tables.variant.run_config(config, 7).train.lr == config.train.lr
    tower = both.variant.model["tower"]
    assert (tower["window"], tower["ffn"]["rows"], tower["dim"]) == (2, 8, 16)
    assert both.variant.fixed == ("tower.window", "tower.ffn.rows")
    assert both.changes() == {
        "train.lr": 0.01, "model.tower.window": 2, "model.tower.ffn.rows": 8,
    }  # fmt: skip
    assert found["dcnv2"][2].variant.model["layers"] == 3


def test_an_empty_group_is_a_value(config, write) -> None:
    config.model["events"] = {"click": {"dim": 8}}
    found = read(write("all: [{model: {events: {}}}]"), config, variants.choose(config, ["kunlun"]))
    assert found["kunlun"][0].variant.model["events"] == {}
    assert found["kunlun"][0].changes() == {"model.events": {}}


def test_lists_of_models_not_compared_are_left_alone(config, write) -> None:
    file = write("all: [{}]\nwukong: [{}, {}]\npma: [{model: {nothing: 1}}]")
    assert [len(t) for t in read(file, config, variants.choose(config, NAMES)).values()] == [1, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("all: [{}]\ndcnv2: [{}, {}]", "dcnv2 has 2 trials, kunlun has 1; every model gets"),
        ("all: [{}]\ndcnv3: [{}]", "'dcnv3' is no variant; did you mean 'dcnv2'?"),
        ("kunlun: [{}]", "no list for dcnv2, and none for 'all'"),
        ("all: []", "all is [], expected a list of trials"),
        ("all: {train: {lr: 1}}", "expected a list of trials"),
        ("all: [{}, 3]", "all, trial 2, for kunlun is 3, expected keys of train and model"),
        (
            "all: [{lr: 1}]",
            "trial 1, for kunlun: 'lr' is not a part of a trial; expected train, mo",
        ),
        ("all: [{train: 3}]", "all, trial 1, for kunlun: train is 3, expected a group of keys"),
        ("all: [{train: {lrr: 1}}]", "trial 1, for kunlun: train: lrr is not a field of TrainConf"),
        ("all: [{train: {lr: -1}}]", "trial 1, for kunlun: train: train.lr is -1.0, expected more"),
        ("all: [{train: {yes: 1}}]", "trial 1, for kunlun: train: 1 is True; keys should be str"),
        ("all: [{model: {n_sum: 8}}]", "all, trial 1, for dcnv2: model: n_sum is not a field of"),
        ("all: [{}]\ndcnv2: [{model: {dimm: 8}}]", "dcnv2, trial 1: model: dimm is not a field"),
        ("all: [{train: {seed: 3}}]", "train.seed: those of --seeds are for all; leave it out"),
        ("all: [{train: {epochs: 2}}]", "train.epochs: all train on the same samples; leave"),
        ("all: [{train: {max_steps: 2}}]", "train.max_steps: all train on the same samples"),
        ("all: [{model: {name: din}}]", "model.name: a trial changes keys of a model, not which"),
        ("all: [{train: {batch_size: 8}}]", "train.batch_size: all train on the same samples, and"),
    ],
)
def test_mistakes_are_one_line(lines, message, config, write) -> None:
    file = write(lines)
    with pytest.raises(ConfigError) as found:
        read(file, config, variants.choose(config, NAMES))
    assert str(found.value).startswith(f"{file}: ")
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "keys", "met"),
    [
        ("full_attention", "{tower: {window: 4}}", "model.tower.window"),
        ("full_attention", "{events: {click: {window: 4}}}", "model.events.click.window"),
        ("full_attention", "{tower: {}}", "model.tower"),
        ("one_tower_for_all", "{events: {click: {dim: 8}}}", "model.events.click.dim"),
        ("experts_1", "{tower: {window: 4}, layers: 3}", None),
    ],
)
def test_a_trial_leaves_an_ablation_what_it_is(name, keys, met, config, write) -> None:
    file, chosen = write(f"all: [{{model: {keys}}}]"), variants.choose(config, [name])
    if met is None:
        assert read(file, config, chosen)
        return
    with pytest.raises(ConfigError, match=f"trial 1, for {name}: {met} is what {name} itself"):
        read(file, config, chosen)


@pytest.mark.parametrize("again", ["{}", "{model: {layers: 2}}", "{train: {lr: 0.001}}"])
def test_a_trial_made_twice_is_refused(again, config, write, tmp_path) -> None:
    file = write(f"all: [{{}}, {{train: {{lr: 0.01}}}}, {again}]")
    with pytest.raises(ConfigError, match="kunlun: trial 3 is trial 1 over again"):
        prepare(config, variants.choose(config, ["kunlun"]), seeds=1, out=tmp_path, trials=file)


def test_each_trial_is_brought_to_the_budget(config, write, tmp_path) -> None:
    file = write("all: [{}, {train: {lr: 0.01}}, {model: {head_hidden: 40}}, {model: {layers: 1}}]")
    study = prepare(
        config, variants.choose(config, NAMES), seeds=1, out=tmp_path, match="flops", trials=file
    )
    first, other = study.variants
    budget = study.cost(first).flops
    for variant in (first, other):
        configured, trained, head, flat = [t.variant for t in study.trials[variant.name]]
        assert configured.model == trained.model == variant.model
        assert (head.model["head_hidden"], flat.model["layers"]) == (40, 1)
        for v in (head, flat):
            assert study.cost(v).flops == pytest.approx(budget, rel=0.05)
    assert study.trials["dcnv2"][2].variant.changed["model.head_hidden"] == 40


def test_a_trial_that_has_no_size_of_its_own_is_moved_and_says_so(config, write, tmp_path) -> None:
    file = write("all: [{model: {dim: 64, hidden: 64, head_hidden: 64, layers: 2}}]")
    study = prepare(
        config, variants.choose(config, ["dcnv2"]), seeds=1, out=tmp_path,
        flops_per_sample=1e5, match="flops", trials=file,
    )  # fmt: skip
    (trial,) = study.trials["dcnv2"]
    assert study.cost(trial.variant).flops == pytest.approx(1e5, rel=0.05)
    assert trial.changes()["model.dim"] == trial.variant.model["dim"] < 64


def test_the_best_on_validation_enters_the_table(config, write, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compare, "speeds", lambda configs, dataset: [[0.001]] * len(configs))
    file, out, said = write(FILE), tmp_path / "out", []

    def study():
        chosen = variants.choose(config, NAMES)
        return prepare(config, chosen, seeds=1, out=out, match="flops", trials=file)

    report = compare.run(study(), said.append)
    assert said[0] == "[1/6] kunlun-trial1 seed 0: training"
    for model in report["models"]:
        name = model["name"]
        values = []
        for number in (1, 2, 3):
            line = json.loads((out / f"trials/{name}/{number}.json").read_text())
            values.append(sum(m["ne"] for m in line["valid"].values()) / len(line["valid"]))
            assert line["test"] == {}
            assert not (out / f"trials/{name}/{number}/predictions").exists()
        found = report["tuning"][name]
        assert [t["valid_ne"] for t in found["trials"]] == pytest.approx(values)
        best = values.index(min(values)) + 1
        assert found["chosen"] == best
        assert f"{name}: trial {best} of 3 is the best on validation" in said
        tried, used = (
            rundir.flat(rundir.config_of(out / run).to_dict())
            for run in (f"trials/{name}/{best}", f"cells/{name}/seed0")
        )
        assert {k for k in tried if tried[k] != used[k]} == {"name"}
        # the same seed and settings: the same run again, now with its test split
        assert model["valid"]["click"]["ne"]["mean"] == pytest.approx(
            json.loads((out / f"trials/{name}/{best}.json").read_text())["valid"]["click"]["ne"]
        )
        assert model["test"]["click"]["ne"]["n"] == 1
    for words in (text(report), page(report)):
        assert "Tuning: validation NE of every trial" in words
    monkeypatch.setattr(cells, "train", None)
    assert compare.run(study(), said.append) == report


def test_the_choice_knows_ties_and_divergence() -> None:
    def line(*values: float | None) -> dict:
        return {"valid": {str(i): {"ne": v} for i, v in enumerate(values)}}

    failed = {"failed": "step 3"}
    assert tuning.best([line(0.9, 0.7), line(0.7, 0.7), line(0.6, 0.8)]) == 1
    assert tuning.best([failed, line(0.9, None), line(0.8, None)]) == 2
    assert tuning.best([line(0.9, 0.9), line(0.1, None), line(None, None)]) == 0
    assert tuning.valid_nes([line(0.9, 0.7), line(0.1, None)]) == [pytest.approx(0.8), None]
    assert tuning.best([failed, line(None, None)]) is None


def test_no_trial_wins_if_all_diverge(config, write, tmp_path, monkeypatch) -> None:
    def train(config, **keys):
        raise NonFiniteError(step=3, module="loss", batch_file=None)

    monkeypatch.setattr(cells, "train", train)
    said: list[str] = []
    study = prepare(
        config, variants.choose(config, ["kunlun"]), seeds=1, out=tmp_path,
        trials=write("all: [{}, {train: {lr: 0.01}}]"),
    )  # fmt: skip
    with pytest.raises(RunError, match=r"^kunlun: no trial can be .* 2 has .* NE: step 3: loss is"):
        compare.run(study, said.append)
    assert not any("best" in line for line in said)


def test_steps_of_unequal_batches_are_timed_with_the_configured_one(
    one_epoch, write, tmp_path, monkeypatch
) -> None:
    timed = []
    monkeypatch.setattr(
        compare, "speeds", lambda runs, dataset: timed.append(runs) or [[0.001]] * len(runs)
    )
    report = compare.run(
        prepare(
            one_epoch, variants.choose(one_epoch, NAMES), seeds=1, out=tmp_path,
            trials=write("all: [{}]\ndcnv2: [{train: {batch_size: 32}}]"),
        ), str,
    )  # fmt: skip
    assert [run.train.batch_size for run in timed[0]] == [64, 64]
    assert "their steps were timed with 64 samples each" in text(report)
    assert rundir.config_of(tmp_path / "cells/dcnv2/seed0").train.batch_size == 32


def test_the_example_of_kuairand_is_read(one_epoch) -> None:
    file = Path(__file__).parents[2] / "examples/kuairand/trials.yaml"
    found = read(file, one_epoch, variants.choose(one_epoch, NAMES))
    assert all(len(own) == 6 for own in found.values())
    of_training = [[t.changes() for t in own[:4]] for own in found.values()]
    assert all(own == of_training[0] for own in of_training)  # the same for all
