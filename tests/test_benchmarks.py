"""The tables that README and docs show of committed results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compared() -> ModuleType:
    return load("compared")


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    return load("targets")


def model(name: str, logloss: float, against: dict[str, Any]) -> dict[str, Any]:
    values = {"logloss": {"mean": logloss, "sd": 0.0012, "n": 2}, "auc": {"mean": 0.75, "sd": None}}
    return {
        "name": name,
        "test": {"click": {**values, "ne": {"mean": logloss / 0.5}}},
        "against_first": against,
        "dense_params": 12345,
        "flops_per_sample": 2e6 if name == "kunlun" else 3e6,
        "times_first": {"mean": 1.0, "sd": None},
        "step_mfu": {"mean": None, "sd": None},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    found = {"click": {"ne": {"difference": 0.004, "low": 0.001, "high": 0.007, "seeds": 2}}}
    models = [model("kunlun", 0.4, {}), model("din", 0.402, found)]
    return {"tasks": ["click"], "seeds": [0, 1], "models": models}


def test_quality_shows_spread_difference_and_peers(
    compared: ModuleType, report: dict[str, Any]
) -> None:
    peer = {"name": "theirs", "seeds": "2/1", "click": {"logloss": 0.41, "sd": None, "auc": 0.74}}
    header, first, second, theirs = compared.quality(report, [peer])
    assert header == ["model", "click log-loss", "click AUC", "click NE from the first"]
    assert first == ["kunlun", "0.4000 ± 0.0012", "0.7500", "-"]
    assert second == ["din", "0.4020 ± 0.0012", "0.7500", "+0.0040 (+0.0010 to +0.0070)"]
    assert theirs == ["theirs (2/1 seeds)", "0.4100", "0.7400", "-"]
    report["seeds"] = [0, 1, 2]
    few = compared.quality(report, [])[2]
    assert few[-1] == "+0.0040 (+0.0010 to +0.0070, 2 of 3 seeds)"


def test_cost_is_told_in_multiples_of_the_first(
    compared: ModuleType, report: dict[str, Any]
) -> None:
    report["models"][1]["times_first"] = {"mean": 1.2345, "sd": 0.0567}
    _, first, second = compared.cost(report)
    assert first == ["kunlun", "0.8000", "12,345", "x 1.00", "x 1.00", "-"]
    assert second[:3] == ["din", "+0.0040 (+0.0010 to +0.0070)", "12,345"]
    assert second[3:] == ["x 1.50", "x 1.23 ± 0.06", "-"]
    click = report["models"][0]["test"]["click"]
    click["floor_ne"] = {"mean": 0.6855, "sd": 0.0}
    click["expected_ne"] = {"mean": 0.7123, "sd": None}
    header, first, second, truth = compared.cost(report)
    assert header[1:3] == ["NE of click", "expected NE of click"]
    assert (first[2], second[2]) == ("0.7123", "-")
    assert truth == ["the true probabilities", "-", "0.6855", "-", "-", "-", "-"]


def test_cost_of_a_first_model_that_diverged(compared: ModuleType, report: dict[str, Any]) -> None:
    report["models"][0]["test"] = {}
    report["models"][1]["against_first"] = {}
    _, first, second = compared.cost(report)
    assert (first[:2], second[:2]) == (["kunlun", "-"], ["din", "-"])


@pytest.mark.parametrize("other", ["--cost", "--tuning"])
def test_peers_are_of_quality_alone(
    compared: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["compared.py", "nowhere", "--peers", "raw", other])
    with pytest.raises(SystemExit):
        compared.main()
    assert "--peers are shown beside quality" in capsys.readouterr().err


def test_a_table_of_one_seed_says_so(compared: ModuleType, report: dict[str, Any]) -> None:
    assert compared.note(report) == ""
    report["seeds"] = [0]
    assert "One seed: intervals are of the test rows alone" in compared.note(report)


def test_tuning_marks_the_chosen_trial(compared: ModuleType, report: dict[str, Any]) -> None:
    def own(chosen: int, second: float | None, changes: dict[str, Any]) -> dict[str, Any]:
        found = [
            {"number": 1, "valid_ne": 0.9, "changes": {}},
            {"number": 2, "valid_ne": second, "changes": changes},
        ]
        return {"chosen": chosen, "trials": found}

    change = {"train.batch_size": 64}
    report["tuning"] = {"kunlun": own(2, 0.8, change), "din": own(1, None, change)}
    assert compared.tuning(report) == [
        ["model", "as configured", "train.batch_size=64"],
        ["kunlun", "0.9000", "**0.8000**"],
        ["din", "**0.9000**", "-"],
    ]
    report["tuning"]["din"] = own(1, None, {"model.layers": 2})
    assert compared.tuning(report)[0] == ["model", "trial 1", "trial 2"]


@pytest.mark.parametrize(
    "table", json.loads((BENCHMARKS / "peers/kuairand.json").read_text())["tables"]
)
def test_peers_know_every_task(
    compared: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    report: dict[str, Any], tmp_path: Path, table: str,
) -> None:  # fmt: skip
    own = report["models"][0]
    own["test"]["long_view"] = own["test"]["click"]
    report = {"tasks": ["click", "long_view"], "seeds": [0], "models": [own]}
    (tmp_path / "compare.json").write_text(json.dumps(report))
    monkeypatch.setattr("sys.argv", ["compared.py", str(tmp_path), "--peers", table])
    compared.main()
    *lines, gap, note = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert len({line.count("|") for line in lines}) == 1
    assert (gap, note[:9]) == ("", "One seed:")


def test_targets_say_what_was_missed(
    targets: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    def case(forward: float, both: float, dtype: str = "float32", **key: object) -> dict[str, Any]:
        def way(name: str, ms: float) -> dict[str, Any]:
            first = {"ms": ms, "gemm_share": forward}
            return {"way": name, "forward": first, "both": {"ms": 3 * ms, "gemm_share": both}}

        ways = [way("native", 1.0), way("padded", 4.0), way("sdpa", 9.0)]
        ways.append({"way": "portable", "skipped": "no room"})
        return {"operator": "gdpa", "dtype": dtype, **key, "ways": ways}

    window = {"operator": "window_attention", "way": "native"}
    report = {
        "cases": [
            case(0.46, 0.51, shape="A"), case(0.7996, 0.7, shape="B"),
            case(0.5, 0.7, "bfloat16", shape="A"),
        ],
        "sweep": [
            {**case(0.9, 0.9, length=1024), "operator": "window_attention", "ways": []},
            {**case(0.9, 0.9, length=2048), "operator": "window_attention"},
        ],
        "exponents": [
            {**window, "pass": "forward", "exponent": 1.0},
            {**window, "pass": "both", "exponent": 1.11},
        ],
        "threads": [{"operator": "gdpa", "shape": "B", "speed_up": 1.69}],
    }  # fmt: skip
    (tmp_path / "ops.json").write_text(json.dumps(report))
    monkeypatch.setattr("sys.argv", ["targets.py", str(tmp_path / "ops.json")])
    targets.main()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [rows[0], *rows[2:]] == [
        ["target", "asked", "measured", "missed"],
        ["gdpa native, float32: share of GEMM peak", "45.0 / 50.0 % (A), 80.0 / 65.0 % (B)",
         "A 46.0 / 51.0 %, B 80.0 / 70.0 %", "B"],
        ["gdpa native, bfloat16: share", "45.0 / 50.0 % (A)", "A 50.0 / 70.0 %", "-"],
        ["gdpa native over padded, float32: times as fast", "3.5 x (A), 5.0 x (B)",
         "A 4.0 x, B 4.0 x", "B"],
        ["gdpa native over padded, bfloat16: times as fast", "3.5 x (A)", "A 4.0 x", "-"],
        ["window_attention native over masked SDPA, 2048 rows", "8.0 / 8.0 x (2048)",
         "2048 9.0 / 9.0 x", "-"],
        ["window_attention native: exponent of time in length, at most",
         "1.10 / 1.10 (512 to 4096)", "512 to 4096 1.00 / 1.11", "512 to 4096"],
        ["gdpa: two threads over one", "1.70 x (B)", "B 1.69 x", "B"],
    ]  # fmt: skip
