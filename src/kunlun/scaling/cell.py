"""One cell of a study: a variant with a seed, an ordinary run, and its line of the table as JSON.

OUT/cells/<variant>/seed<k>/       the run directory
OUT/cells/<variant>/seed<k>.json   the line; enough to go on without the run directory
OUT/trials/<variant>/<number>/     a trial of a variant, likewise
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kunlun.errors import ConfigError, NonFiniteError, RunError
from kunlun.models.io import resolve
from kunlun.scaling.size import Cost
from kunlun.training import environment, memory, rundir, source
from kunlun.training.compare import compare
from kunlun.training.config import RunConfig
from kunlun.training.runlog import read_rows, write_json
from kunlun.training.trainer import train

FREE = {*rundir.FREE, "name", "data"}  # the data are compared by what they hold


@dataclass(frozen=True, eq=False)
class Cell:
    """config: of the run, with the seed in it. cost: of the variant, the same for every seed.
    run: the run directory. test: whether the test split is read in the end."""

    variant: str
    config: RunConfig
    cost: Cost
    run: Path
    test: bool = True

    @property
    def seed(self) -> int:
        """Of data order and initialisation."""
        return self.config.train.seed

    @property
    def file(self) -> Path:
        """The JSON beside it."""
        return self.run.with_suffix(".json")

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.variant} seed {self.seed}"

    @property
    def _cost(self) -> dict[str, Any]:
        cost = self.cost
        return {
            "params": cost.params, "dense_params": cost.dense_params,
            "flops_per_sample": cost.flops,
        }  # fmt: skip

    def line(self, dataset: Any) -> dict[str, Any] | None:
        """The line of a finished cell, None if there is none yet.

        Raises RunError: the cell or its torn run is of another configuration, of other data or of a
        model of another size, or the file is torn.
        """
        if not self.file.is_file():
            if (self.run / "config.yaml").is_file():
                self._same(self.run, rundir.config_of(self.run).to_dict())
                if data := source.recorded(self.run):  # {}: it has read nothing yet
                    self._same_data(self.run, data, dataset)
            return None
        found = read_kept(self.file, config=dict, data=dict)
        self._same(self.file, found["config"])
        self._same_data(self.file, found["data"], dataset)
        for key, now in self._cost.items():
            if found.get(key) != now:
                raise RunError(
                    f"{self.file}: its model had {key}={found.get(key)}, now it has {now}: its "
                    "code changed; choose another --out, or delete it"
                )
        return found

    def _same(self, where: Path, config: dict[str, Any]) -> None:
        """A default is the same model whether it is written or left out."""
        try:
            before = {**config, "model": _whole(config.get("model", {}), str(where))}
        except ConfigError as error:
            raise RunError(f"{error}; choose another --out, or delete it") from None
        now = self.config.to_dict()
        refuse_changes(where, before, {**now, "model": _whole(now["model"], self.label)})

    def _same_data(self, where: Path, before: dict[str, Any], dataset: Any) -> None:
        if changed := source.changed(before, dataset):
            raise RunError(
                f"{where}: its data differ in {', '.join(changed)}; choose another --out, "
                "or delete it"
            )

    def _as_begun(self) -> RunConfig:
        """With name, data and model as the config.yaml that is resumed spells them."""
        if not (self.run / "config.yaml").is_file():
            return self.config
        begun = rundir.config_of(self.run)
        return dataclasses.replace(self.config, name=begun.name, data=begun.data, model=begun.model)

    def work(self, dataset: Any, jobs: int = 1) -> dict[str, Any]:
        """Train to the end, from its newest checkpoint if it was torn; write and return the line.

        jobs: how many cells share the machine meanwhile, for whoever reads its speed. A run that
        diverges is a line as well, with `failed`. Raises as `train` does otherwise.
        """
        device = environment.pick_device(self.config.train.device)
        held = source.fingerprint(dataset)
        was_trained = (self.run / "summary.json").is_file()  # and stopped before its line
        counted = memory.start_peak(device) and not was_trained
        failed = None
        try:
            config = self._as_begun()
            train(config, out=self.run, resume=True, dataset=dataset, quiet=True, test=self.test)
        except NonFiniteError as error:
            failed = str(error)
        line = {
            "variant": self.variant,
            "seed": self.seed,
            "model": self.config.model["name"],
            **self._cost,
            "jobs": jobs,
            "peak_memory": memory.peak(device) if counted else None,
            **(results(self.run, self.cost.flops) if failed is None else {"failed": failed}),
            "config": self.config.to_dict(),
            "data": {key: held[key] for key in source.SAME_DATA},
            "machine": environment.describe(device),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, line)
        return line


def read_kept(file: Path, **keys: type) -> dict[str, Any]:
    """What an earlier call wrote. Raises RunError unless these keys are there, of these types."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(k), t) for k, t in keys.items()):
        raise RunError(f"{file}: torn, or not written by this version of kunlun; delete it")
    return found


def _whole(section: dict[str, Any], where: str) -> dict[str, Any]:
    """A `model:` section with every default in its place."""
    return {"name": section.get("name", "kunlun"), **resolve(section, where)[1].to_dict()}


def refuse_changes(where: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise RunError naming the first key, free ones aside, that is not what it was."""
    before, now = rundir.flat(before), rundir.flat(now)
    for key in sorted(before.keys() | now.keys()):
        if key not in FREE and before.get(key) != now.get(key):
            raise RunError(
                f"{where}: was made with {key}={before.get(key)!r}, now it is "
                f"{now.get(key)!r}; choose another --out, or delete it"
            )


def results(run: Path, flops_per_sample: float) -> dict[str, Any]:
    """What a finished run directory adds to the line of its cell."""
    summary = json.loads((run / "summary.json").read_text())
    trained = summary["train"]
    keys = ("samples", "steps", "best_step", "seconds", "samples_per_s", "mfu", "data_wait")
    return {
        **{key: trained[key] for key in keys},
        "test": summary["test"],
        "valid": summary["valid"],
        "curve": curve(run, flops_per_sample),
    }


def curve(run: Path, flops_per_sample: float) -> list[dict[str, Any]]:
    """One point a validation: step, samples, training FLOPs and seconds so far, NE by task."""
    rows = read_rows(run, "valid")
    if any("samples" not in row for row in rows):
        raise RunError(f"{run}: begun by an earlier version of kunlun; delete it")
    return [
        {
            "step": row["step"],
            "samples": row["samples"],
            "flops": 3 * flops_per_sample * row["samples"],
            "seconds": row["seconds"],
            "ne": {task: values["ne"] for task, values in row["tasks"].items()},
        }
        for row in rows
    ]


def against(
    first: Cell, other: Cell, lines: Mapping[Cell, dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Differences of `other` minus `first` on the same rows, bootstrapped: task -> metric -> low,
    high ... as `training.compare`; kept in the line of `other`, with a digest of the first's. Made
    anew from the predictions if the first is another by now, None if they are gone.

    lines: those of both, finished.
    """
    line, of_first = lines[other] or {}, lines[first] or {}
    known, digest = line.get("against"), _digest(of_first)
    if known is not None and known.get("digest") == digest:
        return dict(known["tasks"])
    files = [cell.run / "predictions" / "test.parquet" for cell in (first, other)]
    if not all(file.is_file() for file in files):
        return None
    tasks = compare(first.run, other.run)["tasks"]
    kept = {"first": first.variant, "digest": digest, "tasks": tasks}
    write_json(other.file, {**line, "against": kept})
    return dict(tasks)


def _digest(line: dict[str, Any]) -> str:
    """Of what a cell was and predicted: its settings but for the free ones, and test metrics."""
    settings = {k: v for k, v in rundir.flat(line["config"]).items() if k not in FREE}
    text = json.dumps([settings, line.get("test")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
