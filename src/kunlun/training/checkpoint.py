"""Checkpoints that are either whole or not there.

    checkpoints/step_00001200/
        state.safetensors   weights, optimizer state, averages, running sums
        state.json          step, loader position, best so far, ...
        DONE                names and sizes of the two; written last

A checkpoint is written beside its place, flushed to the disk, then renamed. No pickle anywhere.
Random states are not in it: the trainer seeds every step from (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from kunlun.errors import RunError

TENSORS, STATE, DONE = "state.safetensors", "state.json", "DONE"


def save(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write `folder/step_*` and delete all but the newest `keep`. Returns its path."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".writing_*"):
        shutil.rmtree(leftover)
    place = folder / f"step_{step:08d}"
    aside = folder / f".writing_{place.name}"
    aside.mkdir()
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, aside / TENSORS)
    (aside / STATE).write_text(json.dumps(state))
    sizes = {name: (aside / name).stat().st_size for name in (TENSORS, STATE)}
    for name in sizes:
        _flush(aside / name)
    (aside / DONE).write_text(json.dumps(sizes))
    _flush(aside / DONE)
    _flush(aside)
    move_in(aside, place)
    for old in complete(folder)[:-keep]:
        _remove(old)
    return place


def move_in(aside: Path, place: Path) -> None:
    """Put a finished directory where an older one may be."""
    _remove(place)
    aside.rename(place)
    _flush(place.parent)


def complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; torn ones are passed over."""
    return [p for p in sorted(folder.glob("step_*")) if _is_whole(p)]


def load(place: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of one checkpoint. Raises RunError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(place / TENSORS), json.loads((place / STATE).read_text())
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise RunError(
            f"{place}: cannot be read ({error}); delete it to resume from an older one"
        ) from None


def _is_whole(place: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((place / DONE).read_text())
        return all((place / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, json.JSONDecodeError):
        return False


def _remove(place: Path) -> None:
    """DONE goes first, so that a deletion cut short leaves nothing that looks whole."""
    if place.exists():
        (place / DONE).unlink(missing_ok=True)
        shutil.rmtree(place)


def _flush(path: Path) -> None:
    """Force a file or a directory entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some systems cannot flush a directory
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
