"""Models side by side: the same samples, embeddings, head, optimizer and, if asked for, budget.

    variants x trials -> the best of each on validation, if there are trials
    variants x seeds -> cells (ordinary runs) -> lines -> mean, deviation, significance -> report

Seeds are the outer loop, so that a slow hour of the machine meets every variant alike.
"""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kunlun.errors import RunError
from kunlun.report.comparison import markdown, page
from kunlun.scaling import cell as cells
from kunlun.scaling.cell import Cell
from kunlun.scaling.jobs import Jobs, finish
from kunlun.scaling.study import Study
from kunlun.scaling.summary import spread, summarise
from kunlun.scaling.timing import conditions, speeds
from kunlun.scaling.tuning import best, record
from kunlun.training import environment, source
from kunlun.training.runlog import write_json

ONE = Jobs()


def run(study: Study, say: Callable[[str], None], jobs: Jobs = ONE) -> dict[str, Any]:
    """Train what is not finished yet; the report, also in OUT/compare.json, .md and .html.

    say: told of every cell as it begins. Raises RunError: cells of another configuration or of
    other data stand in OUT, another process is at work there, or no trial of a variant can be
    chosen; otherwise as `train`.
    """
    study.out.mkdir(parents=True, exist_ok=True)
    with (study.out / ".lock").open("a") as file:  # the lock ends with all who hold it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{study.out}: another kunlun compare is at work there; wait for it, or choose "
                "another --out"
            ) from None
        except OSError:
            say("OUT is on a file system without locks; see that no other kunlun compare uses it")
        return _run(study, say, dataclasses.replace(jobs, lock=file.fileno()))


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
    steps, timed_on = _step_speeds(study)
    report = {
        "config": study.config.to_dict(),
        "data": source.fingerprint(study.dataset)["rows"],
        "tasks": study.dataset.schema.tasks,
        "seeds": study.seeds,
        "match": study.match,
        "left_out": study.left_out,
        "tuning": records,
        "jobs": max((line or {}).get("jobs", 1) for line in lines.values()),
        "machine": timed_on,
        "run_machines": _machines(lines),
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


def _machines(lines: Mapping[Cell, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Those that trained the cells, each once; their commits may differ."""
    found: list[dict[str, Any]] = []
    for line in filter(None, lines.values()):
        about = {k: v for k, v in line["machine"].items() if not k.startswith("git_")}
        if about not in found:
            found.append(about)
    return found


def _step_speeds(study: Study) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """How fast each variant steps, measured side by side, and the machine; kept in OUT/speed.json,
    like the cells, and measured again under other conditions.

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
    asked = {
        "asked": [run.to_dict() for run in runs],
        "costs": [dataclasses.asdict(study.cost(v)) for v in study.variants],
        "conditions": conditions(study.config, study.dataset),
    }
    file = study.out / "speed.json"
    if file.is_file():
        kept = cells.read_kept(file, asked=list, machine=dict, speeds=list)
        if all(kept.get(key) == value for key, value in asked.items()):
            return list(kept["speeds"]), kept["machine"]
    device = environment.pick_device(study.config.train.device)
    peaks = {
        precision: environment.peak_flops(
            device, torch.bfloat16 if precision == "bf16" else torch.float32
        )
        for precision in {run.train.precision for run in runs}
    }
    measured = speeds(runs, study.dataset)
    found = []
    for seconds, v, run in zip(measured, study.variants, runs, strict=True):
        most = peaks[run.train.precision]
        found.append(
            {
                "step_samples_per_s": spread([1 / s for s in seconds]),
                "step_mfu": spread([3 * study.cost(v).flops / s / most for s in seconds]),
                "times_first": spread([f / s for f, s in zip(measured[0], seconds, strict=True)]),
            }
        )
    study.out.mkdir(parents=True, exist_ok=True)
    machine = environment.describe(device)
    write_json(file, {**asked, "machine": machine, "speeds": found})
    return found, machine
