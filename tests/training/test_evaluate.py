"""Evaluation of runs, predictions, comparison."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from standin import Standin, make_schema

from kunlun.errors import DataError, RunError
from kunlun.metrics.ne import entropy
from kunlun.models import io
from kunlun.training import predictions
from kunlun.training.compare import _loss, compare
from kunlun.training.evaluate import evaluate, evaluation_name, predict
from kunlun.training.scoring import Scored
from kunlun.training.slices import slices
from kunlun.training.trainer import train


@pytest.fixture
def run(data, config, tmp_path):
    return train(config(), out=tmp_path / "r", quiet=True)


def test_evaluation_against_sklearn_on_the_predictions(run, data):
    found = evaluate(run)
    table = predictions.read(run / "predictions" / "test.parquet")
    assert table["row"].tolist() == data.column("test", "row").tolist()
    for task in ("click", "buy"):
        y, p = table[f"label.{task}"], table[f"p.{task}"]
        known = ~np.isnan(y)
        assert found["tasks"][task]["auc"] == pytest.approx(roc_auc_score(y[known], p[known]))
        assert found["tasks"][task]["logloss"] == pytest.approx(log_loss(y[known], p[known]))
        assert found["tasks"][task]["rows"] == known.sum()
    assert json.loads((run / "evaluation.json").read_text()) == found


def test_predictions_name_their_rows_as_the_logs_do(run, data):
    table = predictions.read(run / "predictions" / "test.parquet")
    assert list(table)[:7] == ["split", "row", "user", "item", "time", "group", "weight"]
    assert set(table["split"]) == {"test"}
    for column in ("row", "time"):
        assert table[column].tolist() == data.column("test", column).tolist()
    for column in ("user", "item"):
        expected = [f"{column[0]}{i}" for i in data.column("test", column)]
        assert table[column].tolist() == expected


def test_expected_ne_and_floor_against_their_definition(run, data):
    found = evaluate(run)["tasks"]["click"]
    truth = data.column("test", "truth.click")
    p = predictions.read(run / "predictions" / "test.parquet")["p.click"]
    base = entropy(truth.mean())
    expected = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean() / base
    assert found["expected_ne"] == pytest.approx(expected)
    assert found["floor_ne"] == pytest.approx(np.mean([entropy(t) for t in truth]) / base)
    assert "floor_ne" not in evaluate(run)["tasks"]["buy"]


def test_the_best_model_is_the_one_evaluated(run, data):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = {r["step"]: r["ne"] for r in rows if r["kind"] == "valid"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["train"]["best_step"] == min(valid, key=valid.get)
    again = evaluate(run, split="valid")["tasks"]
    assert {t: again[t]["ne"] for t in again} == {t: summary["valid"][t]["ne"] for t in again}


def test_slices_partition_the_rows(run, data):
    found = evaluate(run)["slices"]
    for by in ("history events", "day", "rows of the group"):
        parts = [s for s in found if s["by"] == by]
        assert sum(s["tasks"]["click"]["rows"] for s in parts) == 300
    assert found[0]["value"] == "0"  # rows without history
    assert {s["value"] for s in found if s["by"] == "day"} >= {"1970-01-01", "1970-01-13"}


def test_a_model_that_broke_is_evaluated_as_undefined(run, data):
    def refuse(constant):
        raise AssertionError(constant)

    model = io.load(run / "model")
    with torch.no_grad():
        model.head.up.weight.fill_(torch.nan)
    io.save(model, run / "model")
    found = evaluate(run)
    assert found["tasks"]["click"]["ne"] is found["tasks"]["click"]["expected_ne"] is None
    assert found["calibration"]["click"][0]["p"] is None
    assert json.loads((run / "evaluation.json").read_text(), parse_constant=refuse) == found


def test_a_slice_is_undefined_where_the_whole_is():
    logits = torch.tensor([[0.5], [torch.nan], [-1.0], [2.0]])
    labels, ones = torch.tensor([[1.0], [0.0], [0.0], [1.0]]), torch.ones(4)
    group, time = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    scored = Scored(logits, labels, ones, group, time, torch.tensor([0, 0, 3, 3]))
    assert scored.metrics(["click"]).compute()["click"]["auc"] is None
    broken, whole = (s["tasks"]["click"] for s in slices(scored, ["click"])[:2])
    assert broken["auc"] is broken["ne"] is broken["calibration"] is None
    assert whole["auc"] == 1.0
    assert whole["rows"] == 2


def test_other_data_keep_the_runs_own_evaluation(run, data):
    before = (run / "evaluation.json").read_text()
    evaluate(run, "elsewhere/today")
    assert (run / "evaluation.json").read_text() == before
    (found,) = run.glob("evaluation_today-????????_test.json")
    tag = found.stem.removeprefix("evaluation_")
    assert (run / "predictions" / f"{tag}.parquet").is_file()
    evaluate(run, "./elsewhere/../elsewhere/today")  # the same directory
    evaluate(run, "another/today")
    assert len(list(run.glob("evaluation_today-*_test.json"))) == 2
    assert evaluation_name("elsewhere/today", "test") == tag
    assert evaluation_name("synth:tiny", "valid") == "synth-tiny_valid"
    assert evaluation_name(None, "test") == "test"


def test_predict_without_labels(run, data, tmp_path):
    for name in ("click", "buy"):
        data.columns["test"][name] = np.full(300, np.nan, dtype=np.float32)
    file = predict(run, out=tmp_path / "p.parquet", split="test")
    table = pq.read_table(file)
    assert table["label.click"].null_count == 300
    assert 0 < table["p.click"].to_numpy().min() < table["p.click"].to_numpy().max() < 1
    assert evaluate(run)["tasks"]["click"]["ne"] is None


def test_predict_scores_every_split_or_the_chosen_one(run, data, tmp_path):
    both = predictions.read(predict(run, out=tmp_path / "all.parquet"))
    assert both["split"].tolist() == ["train"] * 600 + ["valid"] * 200 + ["test"] * 300
    assert len(set(both["row"])) == 1100
    one = predictions.read(predict(run, out=tmp_path / "one.parquet", split="valid"))
    assert one["p.click"].tolist() == both["p.click"][600:800].tolist()
    assert predict(run) == run / "predictions" / "all.parquet"


def test_splits_without_rows(run, data, tmp_path):
    today = Standin(sizes={"train": 0, "valid": 0, "test": 40})
    file = predict(run, out=tmp_path / "p.parquet", dataset=today)
    assert predictions.read(file)["split"].tolist() == ["test"] * 40
    before = sorted(tmp_path.rglob("*"))
    message = r"nowhere: the valid split has no rows; those that have: test \(40\)"
    with pytest.raises(DataError, match=message):
        predict(run, out=tmp_path / "q.parquet", split="valid", dataset=today)
    with pytest.raises(DataError, match=message):
        evaluate(run, split="valid", dataset=today)
    with pytest.raises(DataError, match=r"the test split has no rows; those that have: none"):
        evaluate(run, dataset=Standin(sizes={"train": 0, "valid": 0, "test": 0}))
    with pytest.raises(DataError, match=r"nowhere: no split has rows"):
        predict(run, dataset=Standin(sizes={"train": 0, "valid": 0, "test": 0}))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["folder", "file/p.parquet"])
def test_predict_leaves_nothing_where_it_cannot_write(run, data, tmp_path, out):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"(folder is a directory|file is a file), .*give a file"):
        predict(run, out=tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_predictions_cut_short_leave_nothing(run, data, tmp_path, monkeypatch):
    def torn(table, place):
        place.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions.pq, "write_table", torn)
    with pytest.raises(OSError, match="No space left"):
        predict(run, out=tmp_path / "p" / "p.parquet")
    assert list((tmp_path / "p").iterdir()) == []


def test_foreign_tables_are_refused_by_name(run, data):
    message = (
        r"cannot read these data: .*item is \('categorical', \(31, 4\)\), "
        r"the model has \('categorical', \(30, 4\)\).*--like"
    )
    with pytest.raises(RunError, match=message):
        evaluate(run, dataset=Standin(schema=make_schema(items=31)))


def test_foreign_encoders_are_refused_even_if_the_sizes_agree(run, data, tmp_path):
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "item.json").write_text("{}")
    message = r"its encoders \(vocabularies, transforms\) are not those of the training data"
    with pytest.raises(RunError, match=message):
        evaluate(run, dataset=Standin(path=str(tmp_path)))


def test_missing_runs_and_models_are_clear(tmp_path, data, config):
    with pytest.raises(RunError, match=r"nowhere: no such run directory"):
        evaluate(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a run directory, it has no config\.yaml"):
        evaluate(tmp_path)
    run = train(config(max_steps=1), out=tmp_path / "r", quiet=True)
    (run / "model" / "config.json").unlink()
    with pytest.raises(RunError, match=r"no model yet; go on with `kunlun train .*--resume`"):
        evaluate(run)


def test_no_valid_and_no_test_rows(data, config, tmp_path, monkeypatch):
    from kunlun.training import source

    bare = Standin(sizes={"train": 100, "valid": 0, "test": 0})
    monkeypatch.setattr(source, "open_data", lambda name: bare)
    run = train(config(), out=tmp_path / "r", quiet=True)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test"]["click"]["ne"] is None
    assert summary["test"]["click"]["undefined"]["ne"] == "no rows with a known label"
    assert summary["train"]["best_step"] == summary["train"]["steps"]
    assert io.load(run / "model") is not None


def write_predictions(run, noise, seed, n=2000, order=None):
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(n, 1, generator=draw) * 2
    labels = (torch.rand(n, 1, generator=draw) < z.sigmoid()).float()
    labels[::50] = torch.nan
    z = z + noise * torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))
    longs = torch.arange(n)
    order = longs if order is None else order
    labels, z = labels[order], z[order]
    scored = Scored(z, labels, torch.ones(n), order // 5, order, order)
    names = ("split", "row", "user", "item", "time")
    keys = pa.table({name: order.numpy() for name in names})
    table = predictions.table(scored, ["click"], keys)
    predictions.write([table], run / "predictions" / "test.parquet")
    return run


@pytest.mark.parametrize("by", ["group", "row"])
def test_compare_finds_the_better_run(tmp_path, by):
    good, bad = write_predictions(tmp_path / "a", 0.1, 1), write_predictions(tmp_path / "b", 2.0, 2)
    found = compare(good, bad, by=by, draws=200)["tasks"]["click"]
    a, b = (predictions.read(r / "predictions" / "test.parquet") for r in (good, bad))
    known = ~np.isnan(a["label.click"])
    y = a["label.click"][known]
    assert found["auc"]["a"] == pytest.approx(roc_auc_score(y, a["p.click"][known]))
    expected = log_loss(y, b["p.click"][known]) - log_loss(y, a["p.click"][known])
    assert found["logloss"]["difference"] == pytest.approx(expected)
    for name in ("logloss", "ne", "auc"):
        assert found[name]["better"] == "a"
        assert found[name]["low"] < found[name]["difference"] < found[name]["high"]
    assert found["units"] == (400 if by == "group" else 1960)


def test_compare_of_equals_finds_nothing(tmp_path):
    runs = [write_predictions(tmp_path / n, 0.5, seed) for n, seed in (("a", 1), ("b", 2))]
    found = compare(*runs, draws=200)["tasks"]["click"]
    assert [found[m]["better"] for m in ("logloss", "ne", "auc")] == [None] * 3
    same = compare(runs[0], runs[0], draws=20)["tasks"]["click"]
    assert (same["auc"]["low"], same["auc"]["high"]) == (0.0, 0.0)


def test_compare_of_unknown_labels_is_undefined_with_a_reason(tmp_path):
    runs = [write_predictions(tmp_path / n, 0.5, seed) for n, seed in (("a", 1), ("b", 2))]
    for label, reason, rows in (
        (np.nan, "no rows with a known label", 0),
        (0.0, "one class only (all negative)", 2000),
        (1.0, "one class only (all positive)", 2000),
    ):
        for run in runs:
            file = run / "predictions" / "test.parquet"
            table = pq.read_table(file)
            at = table.column_names.index("label.click")
            labels = pa.array(np.full(len(table), label, np.float32), from_pandas=True)
            pq.write_table(table.set_column(at, "label.click", labels), file)
        found = compare(*runs, draws=20)["tasks"]["click"]
        undefined = ("ne", "auc") if rows else ("logloss", "ne", "auc")
        assert found["undefined"] == dict.fromkeys(undefined, reason)
        for name in undefined:
            assert set(found[name].values()) == {None}
        assert (found["rows"], found["units"]) == (rows, rows // 5)


def test_compare_aligns_by_row(tmp_path):
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(5))
    a, b = write_predictions(tmp_path / "a", 0.5, 1), write_predictions(tmp_path / "b", 1.0, 2)
    mixed = write_predictions(tmp_path / "m", 1.0, 2, order=order)
    found, again = compare(a, b, draws=50), compare(a, mixed, draws=50)
    assert again["tasks"] == found["tasks"]
    twice = write_predictions(tmp_path / "t", 1.0, 2, order=order % 1000)
    with pytest.raises(RunError, match=r"hold a row twice; evaluate again"):
        compare(twice, twice)


def test_bootstrap_interval_covers_the_sampling_error(tmp_path):
    """Against the textbook standard error of a mean of independent rows."""
    runs = [write_predictions(tmp_path / n, noise, 3) for n, noise in (("a", 0.0), ("b", 1.0))]
    found = compare(*runs, by="row", draws=1000)["tasks"]["click"]["logloss"]
    a, b = (predictions.read(r / "predictions" / "test.parquet") for r in runs)
    y = a["label.click"]
    each = [-np.log(np.where(y == 1, x["p.click"], 1 - x["p.click"])) for x in (a, b)]
    difference = (each[1] - each[0])[~np.isnan(y)]
    error = difference.std() / len(difference) ** 0.5
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_compare_refuses_other_rows_and_missing_predictions(tmp_path):
    a, b = write_predictions(tmp_path / "a", 0, 1), write_predictions(tmp_path / "b", 0, 1, n=1999)
    with pytest.raises(RunError, match=r"evaluated on different rows \('row' differs\)"):
        compare(a, b)
    with pytest.raises(RunError, match=r"no predictions; run `kunlun evaluate .*/c` first"):
        compare(a, tmp_path / "c")


def test_saturated_probabilities_give_a_large_finite_loss() -> None:
    loss = _loss(np.array([1.0, 0.0, 0.25]), np.array([0.0, 1.0, 0.0]))
    assert loss[:2] == pytest.approx(53 * np.log(2))
    assert loss[2] == pytest.approx(-np.log(0.75))
