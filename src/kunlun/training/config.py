"""What a run is: the YAML that `kunlun train` takes, and the presets inside the package."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from kunlun.config import Config, override, parse, read_yaml
from kunlun.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How to train; every share is a fraction of 1."""

    batch_size: int = 512
    epochs: float = 1.0  # one pass is the rule for click data; a fraction stops inside the epoch
    max_steps: int | None = None  # stop there even if epochs say more
    lr: float = 1e-3  # AdamW, dense weights
    weight_decay: float = 0.01  # AdamW; not on norms, biases and vectors
    table_lr: float = 0.03  # row-wise Adagrad, embedding tables
    table_weight_decay: float = 0.0  # on the rows of the batch only
    warmup: float = 0.02  # share of all steps with a rising learning rate
    decay: Literal["linear", "cosine", "none"] = "linear"
    final: float = 0.1  # share of the learning rate left at the end of the decay
    clip: float | None = 1.0  # largest gradient norm of the dense weights; None: no clipping
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, weights stay float32
    ema: float | None = None  # validate and keep averaged dense weights; the decay it rises to
    compile: bool = False  # torch.compile of the backbone
    evaluate_every: float = 0.25  # share of an epoch between validations
    patience: int | None = 5  # validations without a better NE before stopping; None: never
    log_every: int = 50  # steps between lines of metrics.jsonl
    checkpoint_every: int | None = None  # steps; None: at every validation
    keep_checkpoints: int = 2
    seed: int = 0
    workers: int = 0  # loader processes; the batches do not depend on it
    device: str = "auto"  # auto: cuda if there is one

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"train.{name} is {value}, expected a finite number")
        positive = (
            *("batch_size", "epochs", "max_steps", "lr", "table_lr", "clip", "evaluate_every"),
            *("patience", "log_every", "checkpoint_every", "keep_checkpoints"),
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"train.{name} is {value}, expected more than 0")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("weight_decay", "table_weight_decay", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"train.seed is {self.seed}, expected 0 to {2**63 - 1}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"train.ema is {self.ema}, expected between 0 and 1, or null")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """name: of the directory under runs/. data: dataset directory, or synth:PRESET.

    model: {name: one of kunlun.models.MODELS, and the keys of its configuration}.
    """

    name: str
    data: str
    model: dict[str, Any] = field(default_factory=lambda: {"name": "kunlun"})
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or set(self.name) & set("/\\\0"):
            raise ConfigError(
                f"name is {self.name!r}, expected one directory name without slashes, not '..'"
            )


def presets() -> list[str]:
    """Names of the presets inside the package, sorted."""
    folder = resources.files("kunlun") / "presets"
    if not folder.is_dir():
        return []
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_run_config(preset_or_file: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a preset name or a YAML file describes, with `key.sub=value` overrides.

    A missing `name` becomes the preset's or the file's. Raises ConfigError: unknown preset or key,
    wrong type, a model section that its model refuses.
    """
    source = str(preset_or_file)
    path = Path(preset_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        values = read_yaml(path)
    elif source in presets():
        with resources.as_file(resources.files("kunlun") / "presets" / f"{source}.yaml") as file:
            values = read_yaml(file)
    else:
        known = presets()
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"'{source}' is neither a preset nor a YAML file; {hint}presets: {', '.join(known)}"
        )
    values = override({"name": path.stem, **values}, list(overrides))
    if "data" not in values:
        raise ConfigError(f"{source}: data is missing; add data=DIR (see `kunlun data prepare`)")
    config = parse(RunConfig, values, source)
    from kunlun.models.io import resolve  # torch: seconds, and only here

    resolve(config.model, source)  # a wrong model section is refused before any data is read
    return config
