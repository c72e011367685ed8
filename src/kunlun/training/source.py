"""Where the samples of a run come from: a dataset directory, or the synthetic stream by name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kunlun import __version__
from kunlun.errors import ConfigError, DataError, RunError
from kunlun.training.config import TrainConfig

# What of a fingerprint makes two datasets the same samples, wherever they lie.
SAME_DATA = ("schema", "inputs", "encoders", "rows")


def open_data(name: str) -> Any:
    """The Dataset at a directory, or of `synth:PRESET`, which is generated once and kept.

    Raises RunError if the directory does not exist, ConfigError for an unknown synthetic preset.
    """
    from kunlun.data.dataset import Dataset

    place = _synthetic(name.removeprefix("synth:")) if name.startswith("synth:") else Path(name)
    if not place.is_dir():
        raise RunError(f"{name}: no such dataset directory; make one with `kunlun data prepare`")
    return Dataset.open(place)


def _synthetic(preset: str) -> Path:
    """Directory of a synthetic dataset under $KUNLUN_CACHE (default ~/.cache/kunlun).

    Its name says what made it: configuration, version and code, so that none outlives its maker.
    """
    import kunlun.data as maker
    from kunlun.data.synthetic import PRESETS, synthesize

    if preset not in PRESETS:
        raise ConfigError(f"synth:{preset} does not exist; known: {', '.join(PRESETS)}")
    config = PRESETS[preset]
    made_by = [json.dumps(config.to_dict(), sort_keys=True), __version__]
    made_by += [file.read_text() for file in sorted(Path(maker.__file__).parent.rglob("*.py"))]
    mark = hashlib.sha256("\0".join(made_by).encode()).hexdigest()[:12]
    root = Path(os.environ.get("KUNLUN_CACHE") or Path.home() / ".cache" / "kunlun")
    place = root / f"synth-{preset}-{mark}"
    if not place.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        synthesize(config, place)
    return place


def make_loader(dataset: Any, split: str, config: TrainConfig, *, shuffle: bool = False) -> Any:
    """The Loader of one split; its batches depend on config.seed, never on config.workers."""
    from kunlun.data.loader import Loader

    return Loader(
        dataset,
        split,
        batch_size=config.batch_size,
        shuffle=shuffle,
        seed=config.seed,
        workers=config.workers,
    )


def need_train_rows(dataset: Any) -> None:
    """Raises DataError if there is nothing to learn from."""
    if not dataset.rows("train"):
        raise DataError(
            "the train split has no samples; check split times in schema.yaml", file=dataset.path
        )


def base_rates(dataset: Any) -> list[float]:
    """Share of positives of every task in the train split, by sample weights if there are any;
    0.5 where no label is known."""
    if dataset.schema.weight is not None:
        weights = dataset.column("train", "weight")
        return [_rate(dataset.column("train", f"label.{t}"), weights) for t in dataset.schema.tasks]
    labels = dataset.manifest.get("splits", {}).get("train", {}).get("labels", {})
    rates = [labels.get(task, {}).get("rate") for task in dataset.schema.tasks]
    return [0.5 if rate is None else rate for rate in rates]


def _rate(labels: NDArray[np.floating], weights: NDArray[np.floating]) -> float:
    known = ~np.isnan(labels)
    w = weights[known].astype(np.float64)
    return float((w * labels[known]).sum() / w.sum()) if w.sum() else 0.5


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What env.json remembers of the data: where, rows by split, hashes of what they were made of
    and with."""
    manifest = dataset.manifest
    splits = {name: split.get("rows") for name, split in manifest.get("splits", {}).items()}
    return {
        "path": str(dataset.path),
        "rows": splits,
        "inputs": manifest.get("inputs", {}),
        "encoders": encoders_hash(Path(dataset.path) / "encoders"),
        "schema": _hash(Path(dataset.path) / "schema.yaml"),
    }


def recorded(run: Path) -> dict[str, Any]:
    """The fingerprint of the data that a run was trained on; {} if none was kept.

    Raises RunError if env.json is torn.
    """
    file = run / "env.json"
    try:
        data: dict[str, Any] = json.loads(file.read_text()).get("data", {})
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError:
        raise RunError(
            f"{file}: not valid JSON; delete it to do without comparing the data"
        ) from None
    return data


def changed(before: dict[str, Any], dataset: Any) -> list[str]:
    """Keys of SAME_DATA that were recorded and are other ones today."""
    now = fingerprint(dataset)
    return [key for key in SAME_DATA if key in before and before[key] != now[key]]


def check_same_data(run: Path, dataset: Any) -> None:
    """Raises RunError if the samples are not those that the run has read so far, wherever the
    dataset directory lies now."""
    if differing := changed(recorded(run), dataset):
        raise RunError(
            f"{run}: cannot resume: the data were prepared again and differ in "
            f"{', '.join(differing)}; put the old ones back, or start a run with another name="
        )


def _hash(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def encoders_hash(folder: Path) -> str:
    """SHA-256 over what the encoders hold; Parquet by its columns, since its bytes depend on the
    version that wrote it."""
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        digest.update(file.name.encode())
        if file.suffix != ".parquet":
            digest.update(file.read_bytes())
            continue
        table = pq.read_table(file)
        for name in table.column_names:
            column = table[name].combine_chunks()
            digest.update(f"{name}:{column.type}:{len(column)}".encode())
            for buffer in column.buffers():
                if buffer is not None:
                    digest.update(buffer)
    return digest.hexdigest()
