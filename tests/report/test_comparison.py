"""Tables and page of a comparison are made from its report alone."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from kunlun.report.comparison import markdown, page, tables, text
from kunlun.report.comparison_figures import draw_curves, draw_differences


def spread(mean: float | None, sd: float | None = 0.001) -> dict[str, Any]:
    return {"mean": mean, "sd": sd, "n": 2}


def model(name: str, ne: float, flops: float, **changes: Any) -> dict[str, Any]:
    task = {
        "ne": spread(ne), "auc": spread(0.7), "gauc": spread(None, None),
        "logloss": spread(0.3), "calibration": spread(1.01), "floor_ne": spread(None, None),
    }  # fmt: skip
    points = [
        {"flops": flops * n, "seconds": n / 10, "ne": {"click": ne + 1 / n, "buy": None}}
        for n in (10, 20)
    ]
    found = {
        "name": name, "model": "kunlun", "changed": {"model.dim": 48}, "params": 12345,
        "dense_params": 2345, "flops_per_sample": flops, "test": {"click": task, "buy": task},
        "valid": {"click": task},
        "step_samples_per_s": spread(1100.0), "step_mfu": spread(0.25),
        "times_first": spread(1.1, 0.01), "samples_per_s": spread(1000.0),
        "mfu": spread(0.2), "peak_memory": spread(2.0**30),
        "seconds": spread(5.0), "against_first": {}, "failed": [],
        "curves": [{"seed": seed, "points": points} for seed in (0, 1)],
    }  # fmt: skip
    return {**found, **changes}


def difference(value: float, half: float) -> dict[str, Any]:
    return {"difference": value, "low": value - half, "high": value + half, "seeds": 2}


@pytest.fixture
def report() -> dict[str, Any]:
    against = {
        "click": {"ne": difference(0.02, 0.01), "auc": difference(0.01, 0.002), "logloss": None},
        "buy": {"ne": difference(-0.02, 0.03), "auc": None, "logloss": None},
    }
    machine = {"cpu": "a CPU", "device": "cpu", "threads": 1, "packages": {"torch": "2"}}
    return {
        "config": {"name": "x <y>", "data": "synth:demo", "train": {"batch_size": 256}},
        "data": {"train": 1000, "test": 200},
        "tasks": ["click", "buy"],
        "seeds": [0, 1],
        "match": {"what": "flops", "budget": 1e6, "tolerance": 0.05},
        "left_out": {"softmax": "it is no switch"},
        "machine": machine,
        "run_machines": [machine],
        "models": [
            model("kunlun", 0.9, 1e6),
            model("din", 0.92, 2e6, against_first=against, step_mfu=spread(0.22)),
            model("hstu", 0.9, 3e6, test={}, valid={}, curves=[],
                  failed=["step 3: loss is not finite"],
                  **{key: spread(None, None) for key in ("samples_per_s", "mfu", "seconds")}),
        ],
    }  # fmt: skip


def test_numbers_carry_their_noise(report) -> None:
    quality, cost, against = tables(report)
    expected = ["kunlun", "click", "0.9000 ± 0.0010", "0.7000 ± 0.0010", "-"]
    assert quality.rows[0][:5] == expected
    assert cost.rows[0] == [
        "kunlun", "12,345", "2,345", "1.00 M", "1,100 ± 0", "25.0 ± 0.1 %", "1,000 ± 0",
        "20.0 ± 0.1 %", "1.00 ± 0.00 GiB", "5 ± 0",
    ]  # fmt: skip
    assert against.rows[0] == [
        "din", "click", "+0.02000", "+0.01000 to +0.03000", "worse", "+0.01000",
        "+0.00800 to +0.01200", "better", "x 2.00", "x 1.100 ± 0.010", "-3.0 points",
    ]  # fmt: skip
    buy = next(row for row in against.rows if row[:2] == ["din", "buy"])
    assert buy[4:8] == ["within noise", "-", "-", "-"]
    hstu = next(row for row in against.rows if row[0] == "hstu")
    assert hstu[2:] == ["-"] * 6 + ["x 3.00", "x 1.100 ± 0.010", "+0.0 points"]


def test_one_seed_of_several_is_no_verdict(report) -> None:
    ne = report["models"][1]["against_first"]["click"]["ne"]
    ne["seeds"] = 1
    row = tables(report)[2].rows[0]
    assert row[3:5] == ["+0.01000 to +0.03000 (1 of 2 seeds)", "one seed"]
    report["seeds"] = [0]  # a study of one seed says so in its notes
    assert tables(report)[2].rows[0][3:5] == ["+0.01000 to +0.03000", "worse"]


def test_notes_say_what_was_left_out(report) -> None:
    for words in (text(report), markdown(report), page(report)):
        assert "hstu diverged: step 3: loss is not finite" in words
        assert "softmax is left out: it is no switch." in words
        assert "flops are within 5% of 1e+06" in words
        assert "over 2 seeds" in words
    assert "The truth is known" not in text(report)
    report["models"][0]["test"]["buy"] = {
        **report["models"][0]["test"]["buy"],
        "expected_ne": spread(0.7123),
        "floor_ne": spread(0.6855),
    }
    assert "The truth is known: expected NE of buy" in text(report)
    assert "cannot be below 0.6855." in text(report)
    assert "expected NE of click" not in text(report)
    (quality, *_) = tables(report)
    assert quality.rows[3][quality.header.index("expected NE")] == "0.7123 ± 0.0010"
    assert "timed on" not in text(report)
    assert "a CPU, device cpu, 1 thread(s), torch 2" in page(report)
    report["run_machines"] = [report["machine"], {**report["machine"], "cpu": "another"}]
    assert (
        "Steps were timed on a CPU, device cpu, 1 thread(s), torch 2. Runs were trained on "
        "a CPU, device cpu, 1 thread(s), torch 2; another, device cpu, 1 thread(s), torch 2."
    ) in text(report)
    assert "at a time" not in text(report)
    report["jobs"] = 4
    assert "Runs were trained 4 at a time, so their samples/s" in text(report)
    assert "train.batch_size" not in text(report)
    report["models"][1]["changed"] = {"train.batch_size": 64}
    assert "differ in train.batch_size; their steps were timed with 256 samples each" in text(
        report
    )
    report["seeds"] = [0]
    assert "one seed, so the noise of training is not in them" in text(report)


def test_markdown_rows_have_a_cell_a_column(report) -> None:
    for block in markdown(report).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_page_needs_nothing_else_and_escapes(report) -> None:
    html = page(report)
    assert "x &lt;y&gt;" in html
    assert "<y>" not in html
    assert html.count("<svg") == 2
    assert not re.search(r"<script|<link|<img|\bsrc=|@import|url\(http|href=\"http", html)


def test_figures_are_whole_and_the_same_each_time(report) -> None:
    for draw in (draw_curves, draw_differences):
        svg = draw(report)
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert draw(report) == svg


def test_one_model_is_a_report_too(report) -> None:
    report["models"] = report["models"][:1]
    assert len(tables(report)) == 2
    assert page(report).count("<svg") == 1


def test_tuning_shows_every_trial_and_the_chosen_one(report) -> None:
    def trial(number: int, ne: float | None, **changes: Any) -> dict[str, Any]:
        failed = "step 3: loss is not finite" if ne is None else None
        return {"number": number, "changes": changes, "valid_ne": ne, "failed": failed}

    assert "Tuning" not in text(report)
    report["tuning"] = {
        "kunlun": {"chosen": 2, "trials": [trial(1, 0.91), trial(2, 0.9, **{"train.lr": 0.01})]},
        "din": {"chosen": 1, "trials": [trial(1, 0.95), trial(2, None, **{"model.dim": 8})]},
    }
    tuning = tables(report)[-1]
    assert tuning.header == ["model", "trials", "NE of 1", "NE of 2", "chosen", "changes"]
    assert tuning.rows == [
        ["kunlun", "2", "0.9100", "0.9000", "2", "train.lr=0.01"],
        ["din", "2", "0.9500", "-", "1", "as configured"],
    ]
    for words in (text(report), markdown(report), page(report)):
        assert "Tuning: validation NE of every trial" in words
        assert "Every model had the same number of trials" in words
        assert "din, trial 2 diverged: step 3" in words
    assert "1: as configured\n2: model.dim=8" in page(report)
