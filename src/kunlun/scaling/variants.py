"""What is compared: models of the house, files of one's own, and Kunlun with one part changed."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kunlun.config import override, parse, read_yaml
from kunlun.errors import ConfigError
from kunlun.models import MODELS
from kunlun.models.io import resolve
from kunlun.training.config import RunConfig, TrainConfig

# Name -> the line of YAML that differs; one that the configuration has anyhow is left out.
ABLATIONS: dict[str, str] = {
    "plain_ffn": "model.tower.ffn.kind=plain",  # GDPA off
    "softmax": "model.tower.ffn.kind=softmax",  # in place of the activation
    "scale_sqrt": "model.tower.ffn.scale=sqrt",
    "scale_one": "model.tower.ffn.scale=1.0",
    "bare_residual": "model.tower.ffn.norm=bare",
    "pma": "model.tower.pooling.kind=pma",  # HSP off
    "mean_pooling": "model.tower.pooling.reduce=mean",
    "linear_compression": "model.tower.pooling.compress=linear",  # SumKron off
    "full_attention": "model.tower.window=null",
    "no_comp_skip": "model.comp_skip=false",
    "one_tower_for_all": "model.events={}",  # event personalization off
    "experts_1": "model.interaction.experts=1",
    "experts_2": "model.interaction.experts=2",
    "experts_4": "model.interaction.experts=4",
    "rope": "model.tower.time.mode=rope",
    "no_rotation": "model.tower.time.mode=none",
    "ages": "model.tower.ages=true",
    "pooling_first": "model.order=pooling_first",
}
# Keys of train that no variant and no trial may set, and why.
SHARED = {
    "seed": "those of --seeds are for all",
    "epochs": "all train on the same samples",
    "max_steps": "all train on the same samples",
}


@dataclass(frozen=True)
class Variant:
    """One row of the table. model: its `model:` section. train: keys that differ from the rest.
    fixed: dotted keys of the model that sizing leaves alone if it can."""

    name: str
    model: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)  # dotted keys, for the reader
    fixed: tuple[str, ...] = ()

    def run_config(self, base: RunConfig, seed: int, place: str | None = None) -> RunConfig:
        """The run of this variant with this seed; data and training from `base`.

        Raises ConfigError naming `place`, by default the variant: a key that training refuses.
        """
        train = {**base.train.to_dict(), **self.train, "seed": seed}
        return dataclasses.replace(
            base,
            name=f"{self.name}-seed{seed}",
            model=self.model,
            train=parse(TrainConfig, train, f"{place or self.name}: train"),
        )


def choose(base: RunConfig, names: Sequence[str]) -> list[Variant]:
    """One variant a name: a model (with base's section if it is base's own model, else with its
    defaults), an ablation, or a YAML file with `model:` and perhaps `train:`.

    Raises ConfigError: unknown or doubled name, a section that its model refuses, a key of train
    that must be the same for all.
    """
    found: list[Variant] = []
    for name in names:
        variant = _one(base, name)
        if variant.name in (v.name for v in found):
            raise ConfigError(f"--models names '{variant.name}' twice")
        resolve(variant.model, variant.name)
        variant.run_config(base, base.train.seed)
        found.append(variant)
    return found


def refuse_shared(base: RunConfig, train: Mapping[str, Any], place: str) -> None:
    """Raise ConfigError naming `place` if this part of `train:` sets what is the same for all."""
    for key in train:
        if key in SHARED:
            raise ConfigError(f"{place}: train.{key}: {SHARED[key]}; leave it out")
        if key == "batch_size" and base.train.max_steps is not None:
            raise ConfigError(
                f"{place}: train.batch_size: all train on the same samples, and with "
                "train.max_steps it says how many; use train.epochs in its place"
            )


def ablations(base: RunConfig) -> tuple[list[Variant], dict[str, str]]:
    """Kunlun as configured, then every ablation; and those left out with the reason.

    Raises ConfigError if base's model is another.
    """
    kept: list[Variant] = [_one(base, "kunlun")]
    left_out: dict[str, str] = {}
    whole = _plain(_own_kunlun(base))
    for name, line in ABLATIONS.items():
        variant = _one(base, name)
        if _plain(variant.model) == whole:
            left_out[name] = f"{line} is what the configuration has"
        else:
            kept.append(variant)
    return kept, left_out


def _one(base: RunConfig, name: str) -> Variant:
    if name.endswith((".yaml", ".yml")):
        return _from_file(base, Path(name))
    if name == base.model.get("name", "kunlun"):
        return Variant(name, {"name": name, **base.model})
    if name in MODELS:
        return Variant(name, {"name": name})
    if name in ABLATIONS:
        line = ABLATIONS[name]
        key, _, _ = line.partition("=")
        changed = override({"model": _own_kunlun(base)}, [line])
        section = _without(changed["model"], key.removeprefix("model."))
        value = override({}, [line])
        for part in key.split("."):
            value = value[part]
        return Variant(name, section, changed={key: value})
    known = [*MODELS, *ABLATIONS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"--models: '{name}' does not exist; {hint}models: {', '.join(MODELS)}; ablations of "
        f"kunlun: {', '.join(ABLATIONS)}; or a .yaml file with model: and train:"
    )


def _from_file(base: RunConfig, file: Path) -> Variant:
    values = read_yaml(file)
    for key in values:
        if key not in ("model", "train"):
            raise ConfigError(f"{file}: {key} is not compared by; expected model, train")
    for key in ("model", "train"):
        if not isinstance(values.get(key, {}), dict):
            raise ConfigError(f"{file}: {key} is {values[key]!r}, expected a group of keys")
    train = values.get("train", {})
    refuse_shared(base, train, str(file))
    return Variant(
        file.stem,
        {"name": "kunlun", **values.get("model", base.model)},
        train,
        {f"train.{key}": value for key, value in train.items()},
    )


def _own_kunlun(base: RunConfig) -> dict[str, Any]:
    name = base.model.get("name", "kunlun")
    if name != "kunlun":
        raise ConfigError(f"ablations are switches of kunlun, the configuration's model is {name}")
    return {"name": name, **base.model}


def _without(section: dict[str, Any], key: str) -> dict[str, Any]:
    """A changed key of `tower` holds for every event type, also for those with one of their own."""
    group, _, inner = key.partition(".")
    if group != "tower":
        return section
    section = copy.deepcopy(section)
    for values in section.get("events", {}).values():
        *parents, last = inner.split(".")
        for parent in parents:
            values = values.get(parent) if isinstance(values, dict) else None
        if isinstance(values, dict):  # else the model will say what is wrong with it
            values.pop(last, None)
    return section


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """A section with every default in its place."""
    values: dict[str, Any] = resolve(section, "model")[1].to_dict()
    return values
