"""What a comparison will train: variants brought to one budget, their trials, their cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from kunlun.errors import ConfigError
from kunlun.scaling.cell import Cell, read_kept, refuse_changes
from kunlun.scaling.size import TOLERANCE, Cost, changed, cost, fit, typical_lengths
from kunlun.scaling.timing import TIME_TOLERANCE, conditions, seconds_per_sample
from kunlun.scaling.trials import Trial, read, refuse_doubles
from kunlun.scaling.variants import Variant
from kunlun.training import source
from kunlun.training.config import RunConfig

Match = Literal["flops", "params", "time"]


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
    Raises ConfigError: a variant that cannot be built, or that has no size within the budget;
    RunError: sizes by time stand in OUT that were measured with other data or settings.
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
    sizes: dict[str, Any] | None = None
    if match == "time":
        now = conditions(config, dataset)
        before = _kept_sizes(out / "sizes.json", now)
        chosen, about, found = _matched(chosen, match, None, measure, before)
        sizes = {**found, "conditions": now}
    elif match is not None:
        chosen, about, _ = _matched(chosen, match, flops_per_sample, measure, {})
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
    return Study(
        config, dataset, variants, costs, numbers, about, out, left_out or {}, tries, sizes
    )


def _kept_sizes(file: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call measured under the same conditions, {} if there was none."""
    if not file.is_file():
        return {}
    found = read_kept(file, first=str, budget=float, sizes=dict, conditions=dict)
    refuse_changes(file, found["conditions"], now)
    return found


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
