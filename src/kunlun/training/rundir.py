"""The directory of a run: opening a new one, resuming an old one, and finding its parts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kunlun.config import parse, read_yaml, write_yaml
from kunlun.errors import RunError
from kunlun.training import checkpoint
from kunlun.training.config import RunConfig

# keys that may differ when a run goes on: none of them changes a number
FREE = {"train.workers", "train.device", "train.keep_checkpoints", "train.checkpoint_every"}
PARTS = ("checkpoints", "model", "predictions")  # what a run started over must not inherit


def is_finished(run: Path, config: RunConfig) -> bool:
    """Whether this very run has been trained and evaluated already.

    Raises RunError if the directory holds a run of another configuration.
    """
    written = run / "config.yaml"
    if not written.is_file():
        return False
    _same(config_of(run), config, run)
    return (run / "summary.json").is_file()


def resume_point(run: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None to start; changes nothing on the disk.

    Raises RunError: the directory holds something else, the run exists and neither resume nor
    overwrite is wanted, or it is resumed with another configuration.
    """
    if not _holds_a_run(run):
        return None
    if not resume and not overwrite:
        raise RunError(f"{run} exists; go on with --resume, or choose another name=")
    if not resume:
        return None
    _same(config_of(run), config, run)
    found = checkpoint.complete(run / "checkpoints")
    return found[-1] if found else None


def _holds_a_run(run: Path) -> bool:
    """Whether a run is there, or nothing at all. Raises RunError if something else is: starting
    over deletes files, and must never meet any but our own."""
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file, expected a directory; choose another name=")
    if not run.is_dir() or not any(run.iterdir()):
        return False
    file = run / "config.yaml"
    if not file.is_file() or not {"name", "data", "model", "train"} <= read_yaml(file).keys():
        raise RunError(
            f"{run} is not empty and not a run of kunlun (no config.yaml of one); "
            "choose another name=, or empty it"
        )
    return True


def begin(run: Path, config: RunConfig, *, fresh: bool) -> None:
    """Make the directory and write config.yaml; `fresh` first deletes what an earlier run left."""
    if fresh:
        clear(run)
    run.mkdir(parents=True, exist_ok=True)
    write_yaml(run / "config.yaml", config.to_dict())


def clear(run: Path) -> None:
    """Delete what an earlier run wrote there, and nothing else."""
    for part in PARTS:
        shutil.rmtree(run / part, ignore_errors=True)
    names = ("metrics.jsonl", "summary.json", "evaluation*.json", "nonfinite_*.safetensors")
    for name in (*names, "events.out.tfevents.*"):
        for file in run.glob(name):
            file.unlink()


def config_of(run: Path) -> RunConfig:
    """The configuration of a run. Raises RunError if there is no run there."""
    if not run.is_dir():
        raise RunError(f"{run}: no such run directory; runs are kept under runs/")
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run}: not a run directory, it has no config.yaml")
    return parse(RunConfig, read_yaml(run / "config.yaml"), str(run / "config.yaml"))


def _same(old: RunConfig, new: RunConfig, run: Path) -> None:
    before, after = flat(old.to_dict()), flat(new.to_dict())
    for key in sorted(before.keys() | after.keys()):
        if key not in FREE and before.get(key) != after.get(key):
            raise RunError(
                f"{run}: cannot resume with {key}={after.get(key)!r}, the run has "
                f"{before.get(key)!r}; keep it, or start a run with another name="
            )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> values of a nested dict; an empty group is a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
