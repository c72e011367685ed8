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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kunlun.config import Config, parse, read_yaml
from kunlun.errors import ConfigError
from kunlun.models import MODELS
from kunlun.models.io import resolve
from kunlun.scaling.variants import ABLATIONS, Variant
from kunlun.training import rundir
from kunlun.training.config import RunConfig

EVERY = "all"


@dataclass(frozen=True)
class Changes(Config):
    """One entry of the file: keys of `train:` and of `model:`, as a configuration has them."""

    train: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Dotted keys -> values."""
        return rundir.flat({k: v for k, v in self.to_dict().items() if v})


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
    changes = parse(Changes, entry, place)
    for section, key, why in (
        ("train", "seed", "the first of --seeds is that of every trial"),
        ("model", "name", "a trial changes keys of a model, not which model it is"),
    ):
        if key in getattr(changes, section):
            raise ConfigError(f"{place}: {section}.{key}: {why}")
    model = variant.model
    if changes.model:
        whole = resolve(model, variant.name)[1].to_dict()
        model = _merged({"name": model["name"], **whole}, changes.model)
        resolve(model, place)
    asked = changes.flat()
    tried = dataclasses.replace(
        variant,
        name=f"{variant.name}-trial{number}",
        model=model,
        train={**variant.train, **changes.train},
        changed={**variant.changed, **asked},
        fixed=tuple(k.removeprefix("model.") for k in asked if k.startswith("model.")),
    )
    tried.run_config(base, base.train.seed, place)
    return Trial(number, tuple(asked), tried)


def _merged(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Groups key by key; an empty group is a value."""
    found = dict(section)
    for key, value in changes.items():
        before = found.get(key)
        inner = isinstance(before, dict) and isinstance(value, dict) and value
        found[key] = _merged(before, value) if inner else value  # type: ignore[arg-type]
    return found
