"""Score a trained run on a split: metrics, slices, and how far from the best possible."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kunlun.data.labels import SPLITS
from kunlun.errors import DataError, RunError
from kunlun.features.schema import Schema
from kunlun.metrics import RankingMetrics
from kunlun.metrics.ne import cross_entropy, entropy
from kunlun.models import flops, io
from kunlun.training import environment, predictions, rundir, source
from kunlun.training.config import TrainConfig
from kunlun.training.runlog import write_json
from kunlun.training.scoring import Scored, score
from kunlun.training.slices import slices


def evaluate(
    run: Path | str,
    data: str | None = None,
    split: str = "test",
    *,
    dataset: Any = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Metrics of the run's best model; written to evaluation.json and predictions/SPLIT.parquet.

    data: another dataset directory (prepared with `--like`), default the run's own. Other data or
    another split than test go to evaluation_NAME.json, predictions/NAME.parquet with the NAME of
    `evaluation_name`.
    Returns data, split, tasks {task: metrics}, slices, calibration {task: bins}, flops.
    Raises RunError: no run, no model, or data that the model cannot read; DataError: no rows.
    """
    run = Path(run)
    model, settings, dataset = _open(run, data, dataset, device)
    _splits(dataset, split)
    scored = _score(model, dataset, split, settings)
    tasks = dataset.schema.tasks
    metrics = scored.metrics(tasks)
    found: dict[str, Any] = {
        "data": data if data is not None else rundir.config_of(run).data,
        "split": split,
        "tasks": metrics.compute(),
        "slices": slices(scored, tasks),
        "calibration": metrics.calibration_bins(),
        "flops": _flops(model, dataset, split, settings),
    }
    for task, truth in _truths(dataset, split).items():
        found["tasks"][task] |= _against_truth(scored, tasks.index(task), truth)
    tag = evaluation_name(data, split)
    write_json(run / ("evaluation.json" if tag == "test" else f"evaluation_{tag}.json"), found)
    table = predictions.table(scored, tasks, predictions.keys(dataset, split))
    predictions.write([table], run / "predictions" / f"{tag}.parquet")
    return found


def predict(
    run: Path | str,
    data: str | None = None,
    out: Path | None = None,
    split: str | None = None,
    *,
    dataset: Any = None,
    device: str | None = None,
) -> Path:
    """Write the probabilities of every row, labelled or not, as Parquet; returns its path.

    out: default RUN/predictions/NAME.parquet (`evaluation_name`). split: default all of them.
    Columns: see kunlun.training.predictions. Raises as `evaluate`, or RunError: `out` is no place
    for a file.
    """
    run = Path(run)
    if out is not None:
        predictions.check_place(out)
    model, settings, dataset = _open(run, data, dataset, device)
    name = evaluation_name(data, split or "all")
    file = out if out is not None else run / "predictions" / f"{name}.parquet"
    tasks: list[str] = model.schema.tasks  # type: ignore[union-attr, assignment]
    tables = [
        predictions.table(
            _score(model, dataset, name, settings), tasks, predictions.keys(dataset, name)
        )
        for name in _splits(dataset, split)
    ]
    predictions.write(tables, file)
    return file


def metrics_on_test(run: Path, dataset: Any, device: str) -> dict[str, Any]:
    """Task -> metrics of the test split, all undefined if it has no rows; evaluates the run."""
    if not dataset.rows("test"):
        return RankingMetrics(dataset.schema.tasks).compute()
    found: dict[str, Any] = evaluate(run, dataset=dataset, device=device)["tasks"]
    return found


def evaluation_name(data: str | None, split: str) -> str:
    """SPLIT, or NAME_SPLIT for other data than the run's own; directories of one name differ in
    the hash of their place."""
    if data is None:
        return split
    if data.startswith("synth:"):
        return f"{data.replace(':', '-')}_{split}"
    place = Path(data).resolve()
    return f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}_{split}"


def _splits(dataset: Any, split: str | None) -> list[str]:
    """The chosen split, or all that have rows. Raises DataError if there are none."""
    rows = {name: dataset.rows(name) for name in SPLITS}
    some = [name for name, n in rows.items() if n]
    if split is None and some:
        return some
    if split is None:
        raise DataError("no split has rows; prepare logs that reach into one", file=dataset.path)
    if not rows[split]:
        having = ", ".join(f"{name} ({rows[name]})" for name in some) or "none"
        message = f"the {split} split has no rows; those that have: {having}"
        raise DataError(message, file=dataset.path)
    return [split]


def _open(
    run: Path, data: str | None, dataset: Any, device: str | None
) -> tuple[nn.Module, TrainConfig, Any]:
    """The run's model on its device, its settings, and data it can read."""
    config = rundir.config_of(run)
    if not (run / "model" / "config.json").is_file():
        raise RunError(f"{run}: no model yet; go on with `kunlun train {run}/config.yaml --resume`")
    model = io.load(run / "model").to(environment.pick_device(device or config.train.device))
    if dataset is None:
        dataset = source.open_data(data if data is not None else config.data)
    schema: Schema = model.schema  # type: ignore[assignment]
    differences = schema_differences(schema, dataset.schema)
    if not differences:
        differences = _encoder_differences(run, dataset)
    if differences:
        raise RunError(
            f"{run}: its model cannot read these data: {'; '.join(differences[:3])}; "
            "prepare them with `kunlun data prepare SCHEMA --out DIR --like` the run's dataset"
        )
    return model, config.train, dataset


def _score(model: nn.Module, dataset: Any, split: str, settings: TrainConfig) -> Scored:
    device = next(model.parameters()).device
    loader = source.make_loader(dataset, split, settings)
    tasks = len(model.schema.tasks)  # type: ignore[union-attr, arg-type]
    return score(model, loader, device, tasks=tasks, bf16=settings.precision == "bf16")


def schema_differences(model: Schema, data: Schema) -> list[str]:
    """What of the data is not as the model was trained on, one short text each; [] if it fits."""
    found = []
    if model.tasks != data.tasks:
        found.append(f"labels are {data.tasks}, the model has {model.tasks}")
    ours, theirs = _columns(model), _columns(data)
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            found.append(f"{name} is {theirs.get(name)}, the model has {ours.get(name)}")
    return sorted(found)


def _columns(schema: Schema) -> dict[str, Any]:
    """Every input with its kind and, for ids, the size and width of its table."""
    found: dict[str, Any] = {"order of numbers": schema.numeric}
    groups = {"": schema.inputs, **{f"{k}.": schema.event_inputs(k) for k in schema.events}}
    for prefix, inputs in groups.items():
        for entry in inputs:
            size = None if entry.kind == "numeric" else schema.table_sizes[entry.table]
            found[prefix + entry.name] = (entry.kind, size)
    for kind, event in schema.events.items():
        found[f"events.{kind}.max_len"] = event.max_len
    return found


def _encoder_differences(run: Path, dataset: Any) -> list[str]:
    """Vocabularies of equal size may still hold other values: compare the hashes at hand."""
    old = source.recorded(run).get("encoders")
    if old is None or old == source.encoders_hash(Path(dataset.path) / "encoders"):
        return []
    return ["its encoders (vocabularies, transforms) are not those of the training data"]


def _truths(dataset: Any, split: str) -> dict[str, torch.Tensor]:
    """Task -> true probability of every row, for synthetic data that holds it."""
    found = {}
    for task, label in dataset.schema.labels.items():
        if label.truth is not None:
            try:
                values = dataset.column(split, f"truth.{task}")
            except DataError:  # prepared like the training data, from logs without the truth
                continue
            found[task] = torch.from_numpy(values).double()
    return found


def _against_truth(scored: Scored, task: int, truth: torch.Tensor) -> dict[str, float | None]:
    """expected_ne: NE with labels replaced by their probability (no label noise). floor_ne: that of
    the truth itself; no model can be lower."""
    known = ~torch.isnan(scored.labels[:, task]) & ~torch.isnan(truth)
    p, w = truth[known], scored.weights[known].double()
    if not len(p) or not bool(torch.isfinite(scored.logits[known, task]).all()):
        return {"expected_ne": None, "floor_ne": None}
    mass = w.sum()
    base = entropy(float((p * w).sum() / mass))
    loss = (cross_entropy(scored.logits[known, task], p) * w).sum() / mass
    floor = (cross_entropy(torch.logit(p), p) * w).sum() / mass
    return {"expected_ne": float(loss) / base, "floor_ne": float(floor) / base}


def _flops(
    model: nn.Module, dataset: Any, split: str, settings: TrainConfig
) -> list[dict[str, Any]]:
    """Forward FLOPs per sample by module, at the history lengths of the first batch."""
    batch = next(iter(source.make_loader(dataset, split, settings)), None)
    try:
        rows = flops.count(model, flops.lengths_of(batch)) if batch is not None else []
    except TypeError:  # a model without formulas
        rows = []
    return [{"module": r.module, "parameters": r.parameters, "flops": r.flops} for r in rows]
