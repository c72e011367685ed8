"""Every verb on tiny data: the README's commands as they stand there, then the rest."""

from __future__ import annotations

import collections
import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.commands.conftest import block, shell

pytestmark = pytest.mark.xdist_group("commands")
FEW = ("train.max_steps=2", "train.batch_size=64")


def test_readme_commands_run(
    readme_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = readme_run
    assert done.returncode == 0, done.stderr
    assert len(block("sh").splitlines()) == 5
    assert "logs/schema.yaml: ok" in done.stdout
    assert "next: kunlun evaluate runs/small" in done.stdout
    manifest = json.loads((folder / "datasets/mine/manifest.json").read_text())
    scores = pq.read_table(folder / "scores.parquet")
    rows = {name: split["rows"] for name, split in manifest["splits"].items()}
    assert collections.Counter(scores["split"].to_pylist()) == rows
    logged = pq.read_table(folder / "logs/impressions.parquet").take(scores["row"])
    assert logged["user_id"].to_pylist() == scores["user"].to_pylist()
    assert logged["item_id"].to_pylist() == scores["item"].to_pylist()
    assert logged["timestamp"].to_pylist() == scores["time"].to_pylist()
    click = scores["p.click"].to_numpy()
    assert 0 < click.min() < click.max() < 1


def test_readme_python_runs(house: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(house)
    exec(compile(block("python"), "README.md", "exec"), {})
    ne = json.loads((house / "runs/small/evaluation.json").read_text())["tasks"]["click"]["ne"]
    assert float(capsys.readouterr().out) == ne


def test_each_verb_as_a_process(house: Path, tmp_path: Path) -> None:
    """Processes that the README's commands do not start; one fails, and says so to the shell."""
    done = shell(
        f"""
        cp -r {house}/datasets .
        kunlun doctor --json > doctor.json
        kunlun demo data=datasets/mine {" ".join(FEW)} name=quick > demo.txt
        kunlun evaluate runs/quick --json > evaluation.json
        python -m kunlun data inspect datasets/mine --json > data.json
        kunlun train smal data=datasets/mine 2> wrong.txt && exit 9 || echo $? > code.txt
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    doctor = json.loads((tmp_path / "doctor.json").read_text())
    assert {row["operator"] for row in doctor["operators"]} >= {"gdpa", "window_attention"}
    assert all(row["backend"] and row["why"] for row in doctor["operators"])
    demo = (tmp_path / "demo.txt").read_text()
    for part in (
        "floor_ne",
        "auc",
        "MFU",
        "run directory runs/quick",
        "kunlun evaluate runs/quick",
    ):
        assert part in demo
    assert len(demo.split("Next:\n")[1].splitlines()) == 3
    found = json.loads((tmp_path / "evaluation.json").read_text())
    summary = json.loads((tmp_path / "runs/quick/summary.json").read_text())
    assert found["tasks"]["click"]["ne"] == summary["test"]["click"]["ne"]
    assert json.loads((tmp_path / "data.json").read_text())["tasks"] == ["click", "conversion"]
    assert (tmp_path / "code.txt").read_text() == "2\n"
    assert (tmp_path / "wrong.txt").read_text().count("\n") == 1


def test_demo_is_train_with_the_preset(kunlun, house: Path, tmp_path: Path) -> None:
    keys = (f"data={house}/datasets/mine", *FEW)
    demo = json.loads(kunlun("demo", *keys, "name=a", "--json").out)
    train = json.loads(kunlun("train", "demo", *keys, "name=b", "--json").out)
    assert demo["run"] == "runs/a"
    assert (demo["test"], demo["valid"]) == (train["test"], train["valid"])
    assert kunlun("demo", *keys, "name=a", "--json").code == 0  # replaces its own earlier run
    assert "runs/b exists" in kunlun("train", "demo", *keys, "name=b").err
    resumed = kunlun("train", "demo", *keys, "name=b", "--resume", "--json")
    assert json.loads(resumed.out) == train


def test_printed_configuration_is_a_file_to_train(kunlun, house: Path, tmp_path: Path) -> None:
    data = f"data={house}/datasets/mine"
    text = kunlun("train", "small", "model.layers=2", "--print").out
    assert "data: DIR\n" in text
    (tmp_path / "mine.yaml").write_text(text)
    again = kunlun("train", "mine.yaml", data, "--print", "--json").out
    first = kunlun("train", "small", "model.layers=2", data, "--print", "--json").out
    assert json.loads(again) == json.loads(first)


def test_list_names_every_preset(kunlun) -> None:
    found = json.loads(kunlun("train", "--list", "--json").out)
    assert {"demo", "small", "base"} <= set(found)
    shown = kunlun("train", "--list").out
    assert all(name in shown and about in shown for name, about in found.items())


def test_dry_run_prints_the_plan_and_stops(kunlun, house: Path, tmp_path: Path) -> None:
    arguments = ("train", "small", f"data={house}/datasets/mine", "--dry-run")
    plan = json.loads(kunlun(*arguments, "--json").out)
    shown = kunlun(*arguments).out
    assert list(tmp_path.iterdir()) == []
    config = json.loads((house / "runs/small/model/config.json").read_text())
    summary = json.loads((house / "runs/small/summary.json").read_text())
    assert config["model"] == "kunlun"
    assert plan["parameters"] == summary["model"]["params"]
    assert sum(row["share"] for row in plan["rows"]) == pytest.approx(1)
    assert plan["memory"]["tables"] == 4 * summary["model"]["embedding_params"]
    assert plan["memory"]["activations"] > 0
    assert 0 < plan["saved"]["CompSkip"] < 1
    for row in plan["rows"]:
        assert f"{row['module']} " in shown
        assert f"{row['parameters']:,}" in shown
    assert "CompSkip saves" in shown
    assert "window saves" in shown


def test_plan_follows_the_batch_and_the_switches(kunlun, house: Path) -> None:
    def plan(*keys: str) -> dict:
        line = ("train", "small", f"data={house}/datasets/mine", *keys, "--dry-run", "--json")
        return json.loads(kunlun(*line).out)

    one, two = plan("train.batch_size=64"), plan("train.batch_size=128", "train.ema=0.9")
    assert two["memory"]["activations"] == pytest.approx(2 * one["memory"]["activations"])
    dense = "dense weights and optimizer"
    assert two["memory"][dense] == pytest.approx(5 / 4 * one["memory"][dense])
    full = plan("model.comp_skip=false")
    assert full["saved"]["CompSkip"] == 0
    assert one["flops"] == pytest.approx((1 - one["saved"]["CompSkip"]) * full["flops"])


def test_evaluate_shows_metrics_and_compares(kunlun, house: Path, tmp_path: Path) -> None:
    shutil.copytree(house / "runs", tmp_path / "runs")
    (tmp_path / "datasets").symlink_to(house / "datasets")  # where the run's configuration looks
    run, other = "runs/small", "runs/other"
    found = json.loads(kunlun("evaluate", run, "--json").out)
    shown = kunlun("evaluate", run).out
    assert f"{found['tasks']['click']['ne']:.4f}" in shown
    valid = json.loads(kunlun("evaluate", run, "--split", "valid", "--json").out)
    assert valid["split"] == "valid"

    line = ("train", "small", "data=datasets/mine", "name=other", "train.lr=1e-6", *FEW, "--json")
    worse = json.loads(kunlun(*line).out)["test"]["click"]["ne"]
    ne = found["tasks"]["click"]["ne"]
    assert ne < worse
    for one, against, better in ((run, other, "b"), (other, run, "a")):
        compared = json.loads(kunlun("evaluate", one, "--against", against, "--json").out)
        click = compared["tasks"]["click"]["ne"]
        expected = ne - worse if one == run else worse - ne  # RUN minus OTHER, as the help says
        assert click["difference"] == pytest.approx(expected)
        assert click["low"] < click["difference"] < click["high"]
        assert click["better"] in (better, None)  # two steps may be too few to tell
    shown = kunlun("evaluate", run, "--against", other).out
    assert "a is runs/other, b is runs/small" in shown
    assert "difference" in shown


def test_new_logs_like_old_ones(kunlun, house: Path, tmp_path: Path) -> None:
    schema, old = house / "logs/schema.yaml", house / "datasets/mine"
    line = ("data", "prepare", str(schema), "--out", "today", "--like", str(old), "--json")
    assert "splits" in json.loads(kunlun(*line).out)
    run = str(house / "runs/small")
    found = json.loads(kunlun("evaluate", run, "data=today", "--json").out)
    own = json.loads((house / "runs/small/evaluation.json").read_text())
    assert found["tasks"]["click"]["ne"] == pytest.approx(own["tasks"]["click"]["ne"])
    assert kunlun("predict", run, "data=today", "--out", "p.parquet").out == "wrote p.parquet\n"
    assert set(pq.read_table(tmp_path / "p.parquet")["split"].to_pylist()) == {
        "train", "valid", "test",
    }  # fmt: skip
    line = ("predict", run, "data=today", "--out", "v.parquet", "--split", "valid")
    assert kunlun(*line).code == 0
    assert set(pq.read_table(tmp_path / "v.parquet")["split"].to_pylist()) == {"valid"}


def test_stream_takes_keys_and_lists_presets(kunlun, tmp_path: Path) -> None:
    listed = json.loads(kunlun("data", "synth", "--list", "--json").out)
    assert {"tiny", "demo", "lab", "long"} <= set(listed)
    assert "tiny" in kunlun("data", "synth", "--list").out
    keys = ("users=40", "items=128", "steps=40", "burn_in=20", "seed=3")
    result = kunlun("data", "synth", "tiny", "--out", "set", *keys, "--json")
    assert json.loads(result.out)["users"] == 40
    assert "users" in kunlun("data", "inspect", "set").out
    raw = json.loads(kunlun("data", "synth", "tiny", "--raw", "raw", *keys, "--json").out)
    assert raw["synthetic"]["seed"] == 3
    assert (tmp_path / "raw/schema.yaml").is_file()


def test_doctor_says_which_backend_and_why(kunlun) -> None:
    shown = kunlun("doctor").out
    assert "torch " in shown
    assert "gdpa " in shown
    assert "portable" in shown


def test_like_warns_of_a_missing_past(kunlun, house: Path, tmp_path: Path) -> None:
    shutil.copytree(house / "logs", tmp_path / "logs")
    events = pq.read_table(tmp_path / "logs/events.parquet").sort_by("timestamp")
    pq.write_table(events.slice(len(events) // 2), tmp_path / "logs/events.parquet")
    old = str(house / "datasets/mine")
    prepared = kunlun("data", "prepare", "logs/schema.yaml", "--like", old, "--out", "today")
    assert prepared.code == 0
    validated = kunlun("data", "validate", "logs/schema.yaml", "--like", old, "--json")
    assert json.loads(validated.out)["warnings"]
    for result in (prepared, validated):
        lines = result.err.splitlines()
        assert lines
        assert all(line.startswith("warning: events of type '") for line in lines)
