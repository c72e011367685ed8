"""Models side by side: the same samples, embeddings, head, optimizer and, if asked for, budget.

    variants x trials -> the best of each on validation, if there are trials
    variants x seeds -> cells (ordinary runs) -> lines -> mean, deviation, significance -> report

Seeds are the outer loop, so that a slow hour of the machine meets every variant alike.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from kunlun.errors import ConfigError, RunError
from kunlun.report.comparison import markdown, page
from kunlun.scaling import cell as cells
from kunlun.scaling.cell import Cell
from kunlun.scaling.jobs import Jobs, finish
from kunlun.scaling.size import TOLERANCE, Cost, changed, cost, fit, typical_lengths
from kunlun.scaling.summary import spread, summarise
from kunlun.scaling.timing import TIME_TOLERANCE, seconds_per_sample, speeds
from kunlun.scaling.trials import Trial, read, refuse_doubles
from kunlun.scaling.tuning import best, record
from kunlun.scaling.variants import Variant
from kunlun.training import environment, source
from kunlun.training.config import RunConfig
from kunlun.training.runlog import write_json

Match = Literal["flops", "params", "time"]
ONE = Jobs()


@dataclasses.dataclass(frozen=True)
class Study:
    """What will be trained. match: {what, budget, tolerance} or None. left_out: name -> why.
    trials: variant -> what is tried before it enters the table; {} if nothing is.
    sizes: by time, what OUT/sizes.json will hold: measured once more they would be others, and
    finished cells those of another study."""

    config: RunConfig
    dataset: Any
    variants: list[Variant]
    costs: dict[str, Cost]
    seeds: list[int]
    match: dict[str, Any] | None
    out: Path
    left_out: dict[str, str]
    trials: dict[str, list[Trial]] = dataclasses.field(default_factory=dict)
    sizes: dict[str, Any] | None = None

    @property
    def page(self) -> Path:
        """The HTML page of the report."""
        return self.out / "compare.html"

    def cells(self) -> list[list[Cell]]:
        """Seed by seed, in the order of the variants."""
        return [
            [self._cell(v, seed, f"cells/{v.name}/seed{seed}") for v in self.variants]
            for seed in self.seeds
        ]

    def trial_cells(self) -> dict[str, list[Cell]]:
        """Variant -> its trials, each with the first seed."""
        return {
            name: [
                self._cell(t.variant, self.seeds[0], f"trials/{name}/{t.number}", test=False)
                for t in own
            ]
            for name, own in self.trials.items()
        }

    def _cell(self, variant: Variant, seed: int, place: str, *, test: bool = True) -> Cell:
        config = variant.run_config(self.config, seed)
        return Cell(variant.name, config, self.cost(variant), self.out / place, test)

    def cost(self, variant: Variant) -> Cost:
        """What the variant costs."""
        return self.costs[_section(variant)]

    def plan(self, variants: Sequence[Variant] | None = None) -> list[dict[str, Any]]:
        """One entry a variant: name, model, cost, what differs from its own configuration."""
        return [
            {
                "name": v.name,
                "model": v.model["name"],
                "flops_per_sample": self.cost(v).flops,
                "params": self.cost(v).params,
                "dense_params": self.cost(v).dense_params,
                "changed": v.changed,
            }
            for v in (self.variants if variants is None else variants)
        ]


def prepare(
    config: RunConfig,
    variants: Sequence[Variant],
    *,
    seeds: int,
    out: Path,
    match: Match | None = None,
    flops_per_sample: float | None = None,
    left_out: dict[str, str] | None = None,
    trials: Path | None = None,
) -> Study:
    """Open the data, bring the variants to one budget, count what they cost.

    The budget is `flops_per_sample`, or what the first variant costs as configured; params are
    matched without embedding tables, which all variants share; time is that of training steps.
    trials: a file as `kunlun.scaling.trials` reads it; each trial is brought to the same budget.
    Raises ConfigError: a variant that cannot be built, or that has no size within the budget.
    """
    tries = read(trials, config, variants) if trials is not None else {}
    dataset = source.open_data(config.data)
    source.need_train_rows(dataset)
    if tries and not dataset.rows("valid"):
        raise ConfigError(f"{trials}: the valid split of the data has no rows to choose by")
    lengths = typical_lengths(dataset)

    def measure(section: dict[str, Any], who: str) -> float:
        if match == "time":
            return seconds_per_sample(config, section, dataset)
        found = cost(dataset, section, lengths, who)
        return found.flops if match == "flops" else float(found.dense_params)

    chosen, about = [*variants, *(t.variant for own in tries.values() for t in own)], None
    sizes, kept = None, out / "sizes.json"
    if match is not None:
        before = json.loads(kept.read_text()) if match == "time" and kept.is_file() else {}
        chosen, about, sizes = _matched(chosen, match, flops_per_sample, measure, before)
    costs: dict[str, Cost] = {}
    for v in chosen:
        if _section(v) not in costs:
            costs[_section(v)] = cost(dataset, v.model, lengths, v.name)
    sized = iter(chosen)
    variants = [next(sized) for _ in variants]
    tries = {
        name: [dataclasses.replace(t, variant=next(sized)) for t in own]
        for name, own in tries.items()
    }
    if trials is not None:
        refuse_doubles(trials, config, tries)
    first = config.train.seed
    numbers = list(range(first, first + seeds))
    return Study(config, dataset, variants, costs, numbers, about, out, left_out or {}, tries,
                 sizes if match == "time" else None)  # fmt: skip


def _section(variant: Variant) -> str:
    """The model of a variant, to look it up by."""
    return json.dumps(variant.model, sort_keys=True)


def _matched(
    variants: list[Variant],
    match: Match,
    budget: float | None,
    measure: Callable[[dict[str, Any], str], float],
    kept: dict[str, Any],
) -> tuple[list[Variant], dict[str, Any], dict[str, Any]]:
    """The variants at their sizes, what they were matched to, and what to keep of it: budget, and
    sizes by section and fixed keys.

    kept: that of an earlier call, {} if there was none; goes on only with the same first variant.
    """
    tolerance = TIME_TOLERANCE if match == "time" else TOLERANCE
    keys = [json.dumps([v.model, v.fixed], sort_keys=True) for v in variants]
    found: dict[str, dict[str, Any]] = {}
    if kept.get("first") == keys[0]:
        budget, found = kept["budget"], dict(kept["sizes"])
    if budget is None:  # that of the first, which stays as it is
        budget = measure(variants[0].model, variants[0].name)
        found[keys[0]] = variants[0].model
    for v, key in zip(variants, keys, strict=True):  # trials of training alone have one size
        if key not in found:
            found[key] = fit(
                v.model, budget, lambda s, v=v: measure(s, v.name),  # type: ignore[misc]
                v.name, tolerance=tolerance, fixed=v.fixed,
            )  # fmt: skip
    about = {"what": match, "budget": budget, "tolerance": tolerance}
    sized = [_with(v, found[key]) for v, key in zip(variants, keys, strict=True)]
    return sized, about, {"first": keys[0], "budget": budget, "sizes": found}


def _with(variant: Variant, section: dict[str, Any]) -> Variant:
    """The variant with the section of another size."""
    differs = {**variant.changed, **changed(variant.model, section)}
    return dataclasses.replace(variant, model=section, changed=differs)


def run(study: Study, say: Callable[[str], None], jobs: Jobs = ONE) -> dict[str, Any]:
    """Train what is not finished yet; the report, also in OUT/compare.json, .md and .html.

    say: told of every cell as it begins. Raises RunError: cells of another configuration or of
    other data stand in OUT, another process is at work there, or no trial of a variant can be
    chosen; otherwise as `train`.
    """
    study.out.mkdir(parents=True, exist_ok=True)
    with (study.out / ".lock").open("a") as file:  # the lock ends with the process, however it does
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{study.out}: another kunlun compare is at work there; wait for it, or choose "
                "another --out"
            ) from None
        except OSError:
            say("OUT is on a file system without locks; see that no other kunlun compare uses it")
        return _run(study, say, jobs)


def _run(study: Study, say: Callable[[str], None], jobs: Jobs) -> dict[str, Any]:
    if study.sizes is not None:
        write_json(study.out / "sizes.json", study.sizes)
    study, records = _tuned(study, say, jobs)
    grid = study.cells()
    row_of = {cell: row for row in grid for cell in row}
    lines = {cell: cell.line(study.dataset) for cell in row_of}  # before any of them is trained
    differences: dict[Cell, dict[str, Any] | None] = {}

    def done(cell: Cell, line: dict[str, Any]) -> None:
        lines[cell] = line
        _add_differences(row_of[cell], lines, differences)

    for row in grid:
        _add_differences(row, lines, differences)
    finish(lines, study.dataset, say, done, jobs)
    steps = _step_speeds(study)
    report = {
        "config": study.config.to_dict(),
        "data": source.fingerprint(study.dataset)["rows"],
        "tasks": study.dataset.schema.tasks,
        "seeds": study.seeds,
        "match": study.match,
        "left_out": study.left_out,
        "tuning": records,
        "jobs": max((line or {}).get("jobs", 1) for line in lines.values()),
        "machine": environment.describe(environment.pick_device(study.config.train.device)),
        "models": [
            {**about, **summarise([lines[c] for c in own], [differences[c] for c in own]), **speed}
            for about, own, speed in zip(study.plan(), zip(*grid, strict=True), steps, strict=True)
        ],
    }
    write_json(study.out / "compare.json", report)
    (study.out / "compare.md").write_text(markdown(report))
    study.page.write_text(page(report))
    return report


def _tuned(
    study: Study, say: Callable[[str], None], jobs: Jobs
) -> tuple[Study, dict[str, Any] | None]:
    """The study with the best trial in the place of every variant, and what the report says."""
    if not study.trials:
        return study, None
    grid = study.trial_cells()
    lines = {cell: cell.line(study.dataset) for own in grid.values() for cell in own}
    finish(lines, study.dataset, say, lines.__setitem__, jobs)
    chosen, about = [], {}
    for variant in study.variants:
        trials = study.trials[variant.name]
        found = [line for cell in grid[variant.name] if (line := lines[cell]) is not None]
        place = best(found)
        if place is None:
            undefined = "NE is undefined on the validation rows"
            why = next((line["failed"] for line in found if "failed" in line), undefined)
            raise RunError(
                f"{variant.name}: no trial can be chosen, none of its {len(trials)} has a "
                f"validation NE: {why}; change its list of trials, and choose another --out"
            )
        winner = trials[place]
        say(f"{variant.name}: trial {winner.number} of {len(trials)} is the best on validation")
        chosen.append(dataclasses.replace(winner.variant, name=variant.name))
        about[variant.name] = record(trials, found, winner)
    return dataclasses.replace(study, variants=chosen, trials={}), about


def _add_differences(
    row: list[Cell],
    lines: Mapping[Cell, dict[str, Any] | None],
    differences: dict[Cell, dict[str, Any] | None],
) -> None:
    """Those from the first cell of the row, of every cell that is finished as it is."""
    first, *others = row
    if lines[first] is None:
        return
    differences[first] = None
    for cell in others:
        if lines[cell] is not None and cell not in differences:
            differences[cell] = cells.against(first, cell, lines)


def _step_speeds(study: Study) -> list[dict[str, Any]]:
    """How fast each variant steps, measured side by side; kept in OUT/speed.json, like the cells.

    step_samples_per_s, step_mfu, and times_first: how many times as fast as the first. Variants of
    unequal batch sizes step with the configured one, so that models differ and not batches.
    """
    runs = [v.run_config(study.config, study.seeds[0]) for v in study.variants]
    if len({run.train.batch_size for run in runs}) > 1:
        size = study.config.train.batch_size
        runs = [
            dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=size))
            for run in runs
        ]
    asked = [run.to_dict() for run in runs]
    file = study.out / "speed.json"
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept["asked"] == asked:
            return list(kept["speeds"])
    device = environment.pick_device(study.config.train.device)
    dtype = torch.bfloat16 if study.config.train.precision == "bf16" else torch.float32
    peak = environment.peak_flops(device, dtype)
    measured = speeds(runs, study.dataset)
    found = [
        {
            "step_samples_per_s": spread([1 / s for s in seconds]),
            "step_mfu": spread([3 * study.cost(v).flops / s / peak for s in seconds]),
            "times_first": spread([f / s for f, s in zip(measured[0], seconds, strict=True)]),
        }
        for seconds, v in zip(measured, study.variants, strict=True)
    ]
    study.out.mkdir(parents=True, exist_ok=True)
    write_json(file, {"asked": asked, "machine": environment.describe(device), "speeds": found})
    return found
