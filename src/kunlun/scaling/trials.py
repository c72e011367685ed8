"""Trials of every variant: the same number for each, so that none is tuned better than another.

    all:                                     # of every variant without a list of its own
      - {}                                   # as configured
      - train: {table_lr: 0.3}
      - {train: {lr: 0.002}, model: {layers: 2}}
    din:
      - {}
      - train: {lr: 0.002}
      - model: {hidden: 128}

What they are for, and how the best is chosen: `kunlun.scaling.tuning`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kunlun.config import read_yaml
from kunlun.errors import ConfigError
from kunlun.models import MODELS
from kunlun.models.io import resolve
from kunlun.scaling.cell import FREE
from kunlun.scaling.variants import ABLATIONS, Variant, refuse_shared
from kunlun.training import rundir
from kunlun.training.config import RunConfig

EVERY = "all"


@dataclass(frozen=True)
class Trial:
    """variant: the one that is tried, under a name of its own. asked: the dotted keys that the file
    changes; their values are in variant.changed, since a size may have to move one."""

    number: int
    asked: tuple[str, ...]
    variant: Variant

    def changes(self) -> dict[str, Any]:
        """The asked keys with their values."""
        return {key: self.variant.changed[key] for key in self.asked}


def read(file: Path, base: RunConfig, variants: Sequence[Variant]) -> dict[str, list[Trial]]:
    """Variant -> its trials. Lists for models that are not compared here are left alone.

    Raises ConfigError naming file and place: lists of unequal length, an unknown name, a key that
    training or the model refuses.
    """
    lists = read_yaml(file)
    _check_names(file, lists, [v.name for v in variants])
    found: dict[str, list[Trial]] = {}
    for variant in variants:
        name = variant.name if variant.name in lists else EVERY
        if name not in lists:
            raise ConfigError(f"{file}: no list for {variant.name}, and none for '{EVERY}'")
        entries = lists[name]
        if not isinstance(entries, list) or not entries:
            raise ConfigError(f"{file}: {name} is {entries!r}, expected a list of trials")
        whose = "" if name == variant.name else f", for {variant.name}"
        found[variant.name] = [
            _trial(base, variant, number, entry, f"{file}: {name}, trial {number}{whose}")
            for number, entry in enumerate(entries, start=1)
        ]
    (first, wanted), *others = ((name, len(trials)) for name, trials in found.items())
    for name, count in others:
        if count != wanted:
            raise ConfigError(
                f"{file}: {name} has {count} trials, {first} has {wanted}; every model gets the "
                "same number"
            )
    return found


def _check_names(file: Path, lists: dict[str, Any], names: list[str]) -> None:
    known = [EVERY, *names, *MODELS, *ABLATIONS]
    for name in lists:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"compared: {', '.join(names)}"
            raise ConfigError(f"{file}: '{name}' is no variant; {hint}")


def _trial(base: RunConfig, variant: Variant, number: int, entry: Any, place: str) -> Trial:
    if not isinstance(entry, dict):
        raise ConfigError(f"{place} is {entry!r}, expected keys of train and model, or {{}}")
    for key, value in entry.items():
        if key not in ("train", "model"):
            raise ConfigError(f"{place}: '{key}' is not a part of a trial; expected train, model")
        if not isinstance(value, dict):
            raise ConfigError(f"{place}: {key} is {value!r}, expected a group of keys")
    asked = rundir.flat({section: keys for section, keys in entry.items() if keys})
    refuse_shared(base, entry.get("train", {}), place)
    if "model.name" in asked:
        raise ConfigError(f"{place}: model.name: a trial changes keys of a model, not which it is")
    for key in asked:
        for own in variant.changed:
            if own.startswith("model.") and _meets(key, own):
                raise ConfigError(f"{place}: {key} is what {variant.name} itself changes")
    model = variant.model
    if entry.get("model"):
        whole = resolve(model, variant.name)[1].to_dict()
        model = _merged({"name": model["name"], **whole}, entry["model"])
        resolve(model, place)
    tried = dataclasses.replace(
        variant,
        name=f"{variant.name}-trial{number}",
        model=model,
        train={**variant.train, **entry.get("train", {})},
        changed={**variant.changed, **asked},
        fixed=tuple(k.removeprefix("model.") for k in asked if k.startswith("model.")),
    )
    tried.run_config(base, base.train.seed, place)
    return Trial(number, tuple(asked), tried)


def _meets(key: str, own: str) -> bool:
    """Whether a trial's key is one that an ablation changes, or a group with it, or a part of it; a
    tower's key of one event type counts as the tower's."""
    spellings = (key, re.sub(r"^model\.events\.[^.]+\.", "model.tower.", key))
    return any(f"{k}.".startswith(f"{own}.") or f"{own}.".startswith(f"{k}.") for k in spellings)


def refuse_doubles(file: Path, base: RunConfig, trials: Mapping[str, Sequence[Trial]]) -> None:
    """Raise ConfigError if two trials of a variant, at their sizes, are the same run: that variant
    would have fewer than the others."""
    for name, own in trials.items():
        seen: dict[str, int] = {}
        for trial in own:
            run = trial.variant.run_config(base, base.train.seed)
            model = resolve(run.model, trial.variant.name)[1].to_dict()
            settings = rundir.flat({"train": run.train.to_dict(), "model": model})
            key = json.dumps({k: v for k, v in settings.items() if k not in FREE}, sort_keys=True)
            if key in seen:
                raise ConfigError(
                    f"{file}: {name}: trial {trial.number} is trial {seen[key]} over again, with "
                    "the same settings and size; change one of them"
                )
            seen[key] = trial.number


def _merged(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Groups key by key; an empty group is a value."""
    found = dict(section)
    for key, value in changes.items():
        before = found.get(key)
        inner = isinstance(before, dict) and isinstance(value, dict) and value
        found[key] = _merged(before, value) if inner else value  # type: ignore[arg-type]
    return found
