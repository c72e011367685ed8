"""A study of two models: cells are runs, go on where they stopped, and become one report."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import shutil
import statistics
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from kunlun.errors import NonFiniteError, RunError
from kunlun.models.io import resolve
from kunlun.report.comparison import markdown, page, text
from kunlun.scaling import cell as cells
from kunlun.scaling import compare, summary, variants
from kunlun.scaling.jobs import Jobs, _Worker
from kunlun.scaling.study import prepare
from kunlun.training import memory, rundir

NAMES = ["kunlun", "dcnv2"]


def study(config, out, names=NAMES, seeds=1, **match):
    return prepare(config, variants.choose(config, names), seeds=seeds, out=out, **match)


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """(OUT, report, what was said) of two models and two seeds; read only."""
    from kunlun.training.config import load_run_config
    from tests.scaling.conftest import SMALL

    out, said = tmp_path_factory.mktemp("study"), []
    config = load_run_config("small", [f"data={place}", *SMALL])
    report = compare.run(study(config, out, seeds=2, match="flops"), said.append)
    return out, report, said


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of its cells to change."""
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out"


def diverge(*arguments, **keys):
    """In the place of `train`."""
    raise NonFiniteError(step=3, module="loss", batch_file=None)


@pytest.fixture(autouse=True)
def _steps_not_timed(monkeypatch):
    """Only the module's study times its models."""
    monkeypatch.setattr(compare, "speeds", lambda configs, dataset: [[0.001]] * len(configs))


def test_cells_are_ordinary_runs_with_a_line_each(finished) -> None:
    out, report, said = finished
    assert said == [
        "[1/4] kunlun seed 0: training",
        "[2/4] dcnv2 seed 0: training",
        "[3/4] kunlun seed 1: training",
        "[4/4] dcnv2 seed 1: training",
    ]
    for name in NAMES:
        for seed in (0, 1):
            run = out / "cells" / name / f"seed{seed}"
            assert rundir.config_of(run).train.seed == seed
            summary = json.loads((run / "summary.json").read_text())
            line = json.loads(run.with_suffix(".json").read_text())
            assert line["test"] == summary["test"]
            assert line["params"] == summary["model"]["params"]
            assert line["seconds"] == summary["train"]["seconds"]
            if memory.start_peak(torch.device("cpu")):
                assert line["peak_memory"] > 2**26
            assert [p["step"] for p in line["curve"]] == [3, 4]
            *_, last = line["curve"]
            expected = 3 * line["flops_per_sample"] * line["samples"]
            assert last["flops"] == pytest.approx(expected)
            assert last["seconds"] == pytest.approx(line["seconds"])
            assert line["curve"][0]["flops"] == pytest.approx(expected * 3 / 4)
    assert json.loads((out / "compare.json").read_text()) == report


def test_report_holds_means_deviations_and_differences(finished) -> None:
    out, report, _ = finished
    first, other = report["models"]
    assert other["flops_per_sample"] == pytest.approx(first["flops_per_sample"], rel=0.05)
    assert report["match"]["budget"] == first["flops_per_sample"]
    assert first["changed"] == {}
    assert first["against_first"] == {}
    for task in report["tasks"]:
        values = [
            json.loads((out / "cells/dcnv2" / f"seed{s}.json").read_text())["test"][task]["ne"]
            for s in (0, 1)
        ]
        ne = other["test"][task]["ne"]
        assert ne["mean"] == pytest.approx(sum(values) / 2)
        assert ne["sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
        assert first["times_first"] == {"mean": 1.0, "sd": 0.0, "n": 3}
        assert other["times_first"]["mean"] > 0
        assert 0 < other["step_mfu"]["mean"] < 1
        found = other["against_first"][task]["ne"]
        expected = ne["mean"] - first["test"][task]["ne"]["mean"]
        assert found["difference"] == pytest.approx(expected)
        assert found["low"] < found["difference"] < found["high"]
        assert found["seeds"] == 2


def test_report_is_written_as_table_and_page(finished) -> None:
    out, report, _ = finished
    assert (out / "compare.md").read_text() == markdown(report)
    assert (out / "compare.html").read_text() == page(report)
    for words in (text(report), markdown(report)):
        assert "kunlun" in words
        assert f"{report['models'][1]['test']['click']['ne']['mean']:.4f}" in words
        assert "within 5% of" in words


def test_finished_cells_are_not_run_again(finished, copied, config, monkeypatch) -> None:
    monkeypatch.setattr(cells, "train", None)
    monkeypatch.setattr(compare, "speeds", None)
    said: list[str] = []
    again = compare.run(study(config, copied, seeds=2, match="flops"), said.append)
    assert again == finished[1]
    assert all(line.endswith("finished before") for line in said)


def test_machines_are_those_that_measured(copied, config, monkeypatch) -> None:
    monkeypatch.setattr(cells, "train", None)
    speed, line = copied / "speed.json", copied / "cells/dcnv2/seed1.json"
    for file, name in ((speed, "one"), (line, "two")):
        held = json.loads(file.read_text())
        held["machine"]["cpu"] = name
        file.write_text(json.dumps(held))
    report = compare.run(study(config, copied, seeds=2, match="flops"), str)
    assert report["machine"]["cpu"] == "one"
    assert [machine["cpu"] for machine in report["run_machines"]][1:] == ["two"]
    assert "Steps were timed on one, device" in text(report)


def test_lines_alone_are_enough(finished, copied, config, monkeypatch) -> None:
    for run in copied.glob("cells/*/*/"):
        shutil.rmtree(run)
    monkeypatch.setattr(cells, "train", None)
    assert compare.run(study(config, copied, seeds=2, match="flops"), str) == finished[1]


def test_a_torn_cell_goes_on(finished, copied, config) -> None:
    run = copied / "cells/dcnv2/seed1"
    for file in (run / "summary.json", run.with_suffix(".json")):
        file.unlink()
    for later in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    said: list[str] = []
    again = compare.run(study(config, copied, seeds=2, match="flops"), said.append)
    assert [line for line in said if "training" in line] == ["[4/4] dcnv2 seed 1: training"]
    assert again["models"][1]["test"] == finished[1]["models"][1]["test"]
    assert again["models"][1]["against_first"] == finished[1]["models"][1]["against_first"]
    steps = [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4


@pytest.mark.parametrize("saved", [True, False], ids=["checkpoint", "none_yet"])
def test_a_torn_cell_goes_on_with_its_data_spelled_otherwise(saved, copied, config) -> None:
    run = copied / "cells/dcnv2/seed1"
    if not saved:
        shutil.rmtree(run / "checkpoints")
    for file in (run / "summary.json", run.with_suffix(".json")):
        file.unlink()
    place = Path(config.data)
    moved = dataclasses.replace(config, data=f"{place.parent}/../{place.parent.name}/{place.name}")
    said: list[str] = []
    compare.run(study(moved, copied, seeds=2, match="flops"), said.append)
    assert [line for line in said if "training" in line] == ["[4/4] dcnv2 seed 1: training"]


def test_a_default_may_be_written_or_left_out(copied, config) -> None:
    run, said = copied / "cells/kunlun/seed1", []
    assert "comp_skip" not in rundir.config_of(run).model
    whole = {"name": "kunlun", **resolve(config.model, "config")[1].to_dict()}
    for file in (run / "summary.json", run.with_suffix(".json")):
        file.unlink()
    written = dataclasses.replace(config, model=whole)
    compare.run(study(written, copied, ["kunlun"], seeds=2), said.append)
    assert said == ["[1/2] kunlun seed 0: finished before", "[2/2] kunlun seed 1: training"]


def test_a_cell_of_an_unknown_key_is_refused(copied, config) -> None:
    file = copied / "cells/dcnv2/seed0.json"
    line = json.loads(file.read_text())
    line["config"]["model"]["gone"] = 1
    file.write_text(json.dumps(line))
    with pytest.raises(RunError, match=r"seed0.json: model: gone is not a field .*another --out"):
        compare.run(study(config, copied, seeds=2, match="flops"), str)


@pytest.mark.parametrize(
    ("section", "key", "value", "before"),
    [("train", "lr", 0.5, "0.001"), ("model", "comp_skip", False, "True")],
)
def test_another_configuration_is_refused_before_training(
    section, key, value, before, copied, config
) -> None:
    if section == "model":
        other = dataclasses.replace(config, model={**config.model, key: value})
    else:
        other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=value))
    made = rf"was made with {section}.{key}={before}, now it is {value}"
    with pytest.raises(RunError, match=rf"seed0.json: {made}"):
        compare.run(study(other, copied, ["kunlun"], seeds=2), str)
    (copied / "cells/kunlun/seed0.json").unlink()
    with pytest.raises(RunError, match=rf"kunlun/seed0: {made}"):
        compare.run(study(other, copied, ["kunlun"], seeds=1), str)


@pytest.mark.parametrize("key", ["dense_params", "flops_per_sample"])
def test_a_cell_of_a_model_whose_code_changed_is_refused(key, copied, config) -> None:
    file = copied / "cells/dcnv2/seed0.json"
    line = json.loads(file.read_text())
    line[key] += 1
    file.write_text(json.dumps(line))
    with pytest.raises(RunError, match=rf"seed0.json: its model had {key}=.*its code changed"):
        compare.run(study(config, copied, seeds=2, match="flops"), str)


def test_other_data_are_refused(copied, config) -> None:
    file = copied / "cells/dcnv2/seed0.json"
    line = json.loads(file.read_text())
    line["data"]["rows"]["train"] += 1
    file.write_text(json.dumps(line))
    with pytest.raises(RunError, match=r"dcnv2/seed0.json: its data differ in rows"):
        compare.run(study(config, copied, seeds=2, match="flops"), str)


@pytest.mark.parametrize("finished_run", [True, False], ids=["finished", "torn"])
def test_other_data_of_a_run_without_its_line_are_refused(finished_run, copied, config) -> None:
    run = copied / "cells/dcnv2/seed1"
    run.with_suffix(".json").unlink()
    if not finished_run:
        (run / "summary.json").unlink()
    about = json.loads((run / "env.json").read_text())
    about["data"]["rows"]["train"] += 1
    (run / "env.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=r"dcnv2/seed1: its data differ in rows; choose another"):
        compare.run(study(config, copied, seeds=2, match="flops"), str)


@pytest.mark.parametrize("content", ['{"variant": "dc', "[]", "{}"], ids=["torn", "list", "empty"])
@pytest.mark.parametrize("name", ["cells/dcnv2/seed0.json", "speed.json", "sizes.json"])
def test_a_torn_file_is_named(name, content, copied, config, monkeypatch) -> None:
    monkeypatch.setattr(cells, "train", None)
    (copied / name).write_text(content)
    match = "time" if name == "sizes.json" else "flops"
    with pytest.raises(RunError, match=rf"{name}: torn, or not written by this .* delete it$"):
        compare.run(study(config, copied, seeds=2, match=match), str)


def test_a_line_of_something_else_is_refused(copied, config) -> None:
    (copied / "cells/dcnv2/seed0.json").write_text('{"config": {}, "data": {}}')
    with pytest.raises(RunError, match=r"seed0.json: was made with .* choose another --out"):
        compare.run(study(config, copied, seeds=2, match="flops"), str)


def test_a_run_that_diverges_is_a_line_too(config, tmp_path, monkeypatch) -> None:
    real = cells.train

    def train(config, **keys):
        if config.model["name"] == "dcnv2":
            raise NonFiniteError(step=3, module="loss", batch_file=None)
        return real(config, **keys)

    monkeypatch.setattr(cells, "train", train)
    report = compare.run(study(config, tmp_path), str)
    assert "step 3: loss is not finite" in report["models"][1]["failed"][0]
    assert report["models"][1]["test"] == {}
    assert "dcnv2 diverged: step 3" in text(report)
    assert page(report)
    monkeypatch.setattr(cells, "train", None)  # nor is it run again
    assert compare.run(study(config, tmp_path), str) == report


def test_a_peak_that_cannot_start_anew_is_not_told(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none/clear_refs")
    monkeypatch.setattr(cells, "train", diverge)
    compare.run(study(config, tmp_path, ["kunlun"]), str)
    line = json.loads((tmp_path / "cells/kunlun/seed0.json").read_text())
    assert line["peak_memory"] is None


def test_differences_of_another_first_are_made_anew(copied, config, monkeypatch) -> None:
    monkeypatch.setattr(cells, "train", None)
    swapped = prepare(
        config,
        list(reversed(study(config, copied, match="flops").variants)),
        seeds=2,
        out=copied,
    )
    first, other = compare.run(swapped, str)["models"]
    assert (first["name"], first["against_first"]) == ("dcnv2", {})
    assert other["against_first"]["click"]["ne"]["difference"] == pytest.approx(
        other["test"]["click"]["ne"]["mean"] - first["test"]["click"]["ne"]["mean"]
    )


@pytest.mark.parametrize("old", [False, True], ids=["digest", "no_digest"])
def test_differences_from_a_first_of_other_settings_are_made_anew(
    old, copied, config, monkeypatch
) -> None:
    monkeypatch.setattr(cells, "train", None)
    file = copied / "cells/dcnv2/seed0.json"
    line = json.loads(file.read_text())
    expected = line["against"]["tasks"]["click"]["ne"]["difference"]
    line["against"]["tasks"]["click"]["ne"]["difference"] = 9.0
    file.write_text(json.dumps(line))

    def difference():
        report = compare.run(study(config, copied, match="flops"), str)
        return report["models"][1]["against_first"]["click"]["ne"]["difference"]

    assert difference() == 9.0  # believed as long as the first is the same
    if old:
        del line["against"]["digest"]
    else:  # as after training the first anew, elsewhere or by other code
        first = copied / "cells/kunlun/seed0.json"
        other = json.loads(first.read_text())
        other["test"]["click"]["ne"] += 1
        first.write_text(json.dumps(other))
    file.write_text(json.dumps(line))
    assert difference() == expected
    file.write_text(json.dumps({**line, "against": {**line["against"], "digest": "stale"}}))
    shutil.rmtree(copied / "cells/dcnv2/seed0")
    report = compare.run(study(config, copied, match="flops"), str)
    assert report["models"][1]["against_first"] == {}


def test_a_difference_of_some_seeds_says_so(copied, config, monkeypatch) -> None:
    monkeypatch.setattr(cells, "train", None)
    file = copied / "cells/dcnv2/seed0.json"
    line = json.loads(file.read_text())
    del line["against"]
    file.write_text(json.dumps(line))
    assert "of 2 seeds)" not in text(
        compare.run(study(config, copied, seeds=2, match="flops"), str)
    )
    file.write_text(json.dumps(line))
    shutil.rmtree(copied / "cells/dcnv2/seed0")
    assert " (1 of 2 seeds)" in text(
        compare.run(study(config, copied, seeds=2, match="flops"), str)
    )


def test_sizes_by_time_are_kept(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "kunlun.scaling.study.seconds_per_sample",
        lambda config, section, dataset: section["dim"] / 16,
    )
    monkeypatch.setattr(cells, "train", diverge)
    found = study(config, tmp_path, match="time")
    assert found.variants[1].model["dim"] == 16  # as narrow as kunlun
    assert found.match == {"what": "time", "budget": 1.0, "tolerance": 0.10}
    assert not any(tmp_path.iterdir())  # a dry run ends here
    compare.run(found, str)
    monkeypatch.setattr("kunlun.scaling.study.seconds_per_sample", None)
    again = study(config, tmp_path, match="time")
    assert (again.variants, again.match) == (found.variants, found.match)
    monkeypatch.setattr(  # another time of day: what is new is measured, what is known stays
        "kunlun.scaling.study.seconds_per_sample",
        lambda config, section, dataset: section.get("dim", 64) / 32,
    )
    grown = study(config, tmp_path, [*NAMES, "dlrm"], match="time")
    assert grown.variants[:2] == found.variants
    assert grown.variants[2].model["dim"] == 32
    assert grown.match == found.match
    other = study(config, tmp_path, list(reversed(NAMES)), match="time")
    assert other.match["budget"] == 2.0


def test_sizes_by_time_of_other_settings_are_refused(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "kunlun.scaling.study.seconds_per_sample",
        lambda config, section, dataset: section["dim"] / 16,
    )
    monkeypatch.setattr(cells, "train", diverge)
    compare.run(study(config, tmp_path, match="time"), str)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=32))
    with pytest.raises(RunError, match=r"sizes.json: was made with train.batch_size=64, now it"):
        study(other, tmp_path, match="time")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(RunError, match=r"sizes.json: was made with threads=\d+, now it is 77; cho"):
        study(config, tmp_path, match="time")


@pytest.mark.parametrize("changed", ["rows", "threads", "unknown"])
def test_speeds_under_other_conditions_are_measured_again(
    changed, finished, copied, config, monkeypatch
) -> None:
    monkeypatch.setattr(cells, "train", None)
    file = copied / "speed.json"
    kept = json.loads(file.read_text())
    if changed == "rows":
        kept["conditions"]["data"]["rows"]["train"] += 1
    elif changed == "threads":
        kept["conditions"]["threads"] += 1
    else:  # as earlier versions wrote it
        del kept["conditions"]
    file.write_text(json.dumps(kept))
    report = compare.run(study(config, copied, seeds=2, match="flops"), str)
    assert report["models"][0]["step_samples_per_s"]["mean"] == pytest.approx(1000)
    again = json.loads(file.read_text())["conditions"]
    assert again == json.loads((finished[0] / "speed.json").read_text())["conditions"]


def test_mfu_of_steps_is_of_the_precision_of_each_model(config, tmp_path, monkeypatch) -> None:
    peaks = {torch.bfloat16: 4e9, torch.float32: 1e9}
    monkeypatch.setattr(compare.environment, "peak_flops", lambda device, dtype: peaks[dtype])
    monkeypatch.setattr(cells, "train", diverge)
    half = tmp_path / "half.yaml"
    half.write_text("train: {precision: bf16}")
    report = compare.run(study(config, tmp_path / "out", ["kunlun", str(half)]), str)
    full, half = (model["step_mfu"]["mean"] for model in report["models"])
    assert full == pytest.approx(4 * half)


def test_two_at_work_in_one_place_are_refused(config, tmp_path, monkeypatch) -> None:
    def train(config, **keys):
        with pytest.raises(RunError, match=f"^{tmp_path}: another kunlun compare is at work there"):
            compare.run(study(config, tmp_path), str)
        diverge()

    monkeypatch.setattr(cells, "train", train)
    report = compare.run(study(config, tmp_path), str)
    assert all(model["failed"] for model in report["models"])
    compare.run(study(config, tmp_path), str)  # the lock ended with the run

    def flock(*arguments) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    said: list[str] = []
    monkeypatch.setattr(compare.fcntl, "flock", flock)
    compare.run(study(config, tmp_path), said.append)
    assert "file system without locks" in said[0]


def test_workers_that_outlive_their_parent_keep_the_lock(config, tmp_path, monkeypatch) -> None:
    workers = []

    def end() -> None:
        worker = workers.pop()
        worker.interrupt()
        worker.kill()

    def finish(lines, dataset, say, done, jobs) -> None:
        workers.append(_Worker(next(iter(lines)), jobs))
        raise KeyboardInterrupt  # and nobody waits for the worker, as after a SIGKILL

    monkeypatch.setattr(compare, "finish", finish)
    at_once = Jobs(2, partial(time.sleep, 600))
    with pytest.raises(KeyboardInterrupt):
        compare.run(study(config, tmp_path), str, at_once)
    try:
        with pytest.raises(RunError, match="another kunlun compare is at work there"):
            compare.run(study(config, tmp_path), str)
    finally:
        end()
    with pytest.raises(KeyboardInterrupt):
        compare.run(study(config, tmp_path), str, at_once)
    end()


def test_training_steps_are_timed(config) -> None:
    from kunlun.scaling.timing import seconds_per_sample
    from kunlun.training import source

    dataset = source.open_data(config.data)
    small = seconds_per_sample(config, {"name": "dcnv2", "dim": 8}, dataset)
    large = seconds_per_sample(config, {"name": "dcnv2", "dim": 128}, dataset)
    assert 0 < small < large


def difference(value: float, half: float) -> dict[str, float]:
    return {"difference": value, "low": value - half, "high": value + half}


def test_one_seed_has_the_noise_of_rows_alone() -> None:
    assert summary.combine([difference(0.2, 0.1)]) == {
        "difference": 0.2, "low": pytest.approx(0.1), "high": pytest.approx(0.3), "seeds": 1,
    }  # fmt: skip


def test_seeds_add_their_own_noise() -> None:
    found = summary.combine([difference(v, 0.3) for v in (1.0, 2.0, 3.0)])
    # Student's t with two degrees of freedom, from tables: 4.303
    half = math.sqrt(0.3**2 + (4.303 * 1.0 / math.sqrt(3)) ** 2)
    assert found["difference"] == 2.0
    assert found["high"] - 2.0 == pytest.approx(half)
    assert 2.0 - found["low"] == pytest.approx(half)


def test_one_seed_keeps_the_sides_of_its_interval() -> None:
    lopsided = {"difference": 0.3, "low": 0.05, "high": 0.9}
    assert summary.combine([lopsided]) == {**lopsided, "seeds": 1}


@pytest.mark.parametrize("seeds", [2, 5, 11, 12, 13, 20, 31, 100])
def test_quantiles_of_student_have_no_jump(seeds: int) -> None:
    """Differences of +-1 around 0: the interval is the quantile times their deviation."""
    from scipy.stats import t

    found = summary.combine([difference((-1.0) ** k, 0.0) for k in range(seeds)])
    deviation = statistics.stdev([(-1.0) ** k for k in range(seeds)])
    half = t.ppf(0.975, seeds - 1) * deviation / math.sqrt(seeds)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=2e-3)


def test_undefined_stays_undefined() -> None:
    nothing = dict.fromkeys(("difference", "low", "high"))
    assert summary.combine([nothing]) is None
    assert summary.combine([nothing, difference(1.0, 0.5)])["seeds"] == 1
    assert summary.spread([None, None]) == {"mean": None, "sd": None, "n": 0}
    assert summary.spread([1.0, None, 3.0])["mean"] == 2.0
