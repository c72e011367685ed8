"""`kunlun compare` as a command: two models end to end, plans, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("commands")
KEYS = ("users=40", "items=128", "steps=40", "burn_in=20", "seed=3")
FEW = ("train.max_steps=2", "train.batch_size=64", "model.dim=16")


@pytest.fixture
def data(kunlun, tmp_path: Path) -> str:
    assert kunlun("data", "synth", "tiny", "--out", "set", *KEYS).code == 0
    return f"data={tmp_path}/set"


def test_two_models_from_plan_to_page(kunlun, data: str, tmp_path: Path) -> None:
    line = ("compare", "demo", data, *FEW, "--models", "kunlun,dcnv2", "--seeds", "1")
    budget = ("--flops-per-sample", "4e5")
    plan = json.loads(kunlun(*line, *budget, "--dry-run", "--json").out)
    assert [m["name"] for m in plan["models"]] == ["kunlun", "dcnv2"]
    assert all(m["flops_per_sample"] == pytest.approx(4e5, rel=0.05) for m in plan["models"])
    shown = kunlun(*line, *budget, "--dry-run").out
    assert "2 models x 1 seeds, to runs/demo-compare/cells" in shown
    assert "model.dim=" in shown
    assert not (tmp_path / "runs").exists()

    result = kunlun(*line, *budget, "--jobs", "2")
    assert result.code == 0, result.err
    assert "[2/2] dcnv2 seed 0: training" in result.err
    assert "Difference from kunlun" in result.out
    out = tmp_path / "runs/demo-compare"
    assert {f.name for f in out.iterdir()} == {
        ".lock", "cells", "compare.json", "compare.md", "compare.html", "speed.json",
    }  # fmt: skip
    report = json.loads(kunlun(*line, *budget, "--json").out)
    assert report == json.loads((out / "compare.json").read_text())
    assert report["jobs"] == 2
    again = json.loads(kunlun("evaluate", str(out / "cells/dcnv2/seed0"), "--json").out)
    ne = report["models"][1]["test"]["click"]["ne"]["mean"]
    assert again["tasks"]["click"]["ne"] == ne
    assert report["models"][1]["against_first"]["click"]["ne"]["low"] < 1
    changed = kunlun(*line, *budget, "train.lr=0.5")
    assert changed.code == 2
    assert "choose another --out" in changed.err


def test_ablations_are_planned(kunlun, data: str) -> None:
    line = ("compare", "demo", data, "--ablations", "--dry-run")
    plan = json.loads(kunlun(*line, "--json").out)
    names = [m["name"] for m in plan["models"]]
    assert names[0] == "kunlun"
    assert {"plain_ffn", "pma", "full_attention", "one_tower_for_all", "experts_4"} <= set(names)
    assert set(plan["left_out"]) == {"experts_2", "mean_pooling"}
    flops = {m["name"]: m["flops_per_sample"] for m in plan["models"]}
    assert flops["no_comp_skip"] > flops["kunlun"]
    assert flops["rope"] == flops["kunlun"]
    shown = kunlun(*line).out
    assert "model.tower.pooling.kind=pma" in shown
    assert "left out: experts_2" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "Give either --models A,B or --ablations"),
        (["demo", "--models", "kunlun", "--ablations"], "Give either"),
        (["small", "--models", "kunlun"], "which data? Add data=DIR"),
        (["demo", "--models", "kunlum"], "did you mean 'kunlun'?"),
        (["demo", "--models", ","], "--models names nothing"),
        (["demo", "--models", "kunlun", "--match", "size"], "'size' is not one of"),
        (
            ["demo", "--models", "kunlun", "--match", "time", "--flops-per-sample", "1e6"],
            "is a budget of flops, not of time",
        ),
        (["demo", "--models", "kunlun", "--flops-per-sample", "-1"], "expected more than 0"),
        (["demo", "--models", "kunlun", "model.dimm=3"], "did you mean 'dim'?"),
        (["demo", "model.name=dcnv2", "model={name: dcnv2}", "--ablations"], "switches of kunlun"),
        (["demo", "data=nowhere", "--models", "kunlun"], "nowhere: no such dataset directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(arguments, message, kunlun, tmp_path: Path) -> None:
    code, out, err = kunlun("compare", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_budget_is_one_line(kunlun, data: str) -> None:
    line = ("compare", "demo", data, "--models", "dcnv2", "--flops-per-sample", "7")
    code, out, err = kunlun(*line)
    assert (code, out) == (2, "")
    assert "dcnv2: no size within 5% of 7; the nearest it reaches: " in err


def test_an_impossible_ablation_is_one_line(kunlun, data: str) -> None:
    few = ("model.n_sum=1", "model.layers=1", "model.events={}")
    few += ("model.tower.pooling.tokens=1", "model.interaction.experts=9")
    code, _, err = kunlun("compare", "demo", data, *few, "--models", "kunlun", "--dry-run")
    assert code == 2
    assert "kunlun: model.interaction.experts (9) must not exceed" in err


def test_trials_are_planned(kunlun, data: str, tmp_path: Path) -> None:
    file = tmp_path / "tries.yaml"
    file.write_text("all: [{}, {train: {lr: 0.01}}]\ndin: [{}, {model: {hidden: 40}}]\n")
    line = ("compare", "demo", data, *FEW, "--models", "kunlun,din", "--trials", "tries.yaml")
    shown = kunlun(*line, "--dry-run")
    assert shown.code == 0, shown.err
    assert "kunlun-trial2" in shown.out
    assert "model.hidden=40" in shown.out
    assert "2 models x 2 trials of seed 0, to runs/demo-compare/trials" in shown.out
    plan = json.loads(kunlun(*line, "--dry-run", "--json").out)
    assert plan["trials"]["kunlun"][1]["changed"] == {"train.lr": 0.01}
    file.write_text("all: [{}, {train: {lr: -1}}]\n")
    code, out, err = kunlun(*line)
    assert (code, out) == (2, "")
    assert err == (
        "error: tries.yaml: all, trial 2, for kunlun: "
        "train: train.lr is -1.0, expected more than 0\n"
    )
