"""What a dataset directory holds, for people and machines."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kunlun.data.dataset import Dataset
from kunlun.data.labels import SPLITS


def inspect(path: Path) -> dict[str, Any]:
    """Summary of a dataset directory: the manifest with times as text, inputs, sizes on disk.

    Every file is opened, so a torn directory raises DataError here.
    """
    dataset = Dataset.open(path)
    schema, manifest = dataset.schema, dataset.manifest
    for split in SPLITS:
        dataset.chunks(split)
    kinds = {kind: dataset.events(kind) for kind in schema.events}
    return {
        "path": str(path),
        "bytes": sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file()),
        "users": manifest["users"],
        "items": manifest["items"],
        "tasks": schema.tasks,
        "splits": {
            name: {**split, "time": _span(split["time"])}
            for name, split in manifest["splits"].items()
        },
        "events": {
            kind: {
                **manifest["events"][kind],
                "time": _span(manifest["events"][kind]["time"]),
                "max_len": schema.events[kind].max_len,
                "columns": list(columns),
            }
            for kind, columns in kinds.items()
        },
        "inputs": [
            {
                "name": entry.name,
                "role": entry.feature.role,
                "kind": entry.kind,
                "ids": None if entry.kind == "numeric" else entry.feature.size,
                "dim": None if entry.kind == "numeric" else entry.feature.dim,
            }
            for entry in schema.inputs
        ],
        "embedding_parameters": sum(size * dim for size, dim in schema.table_sizes.values()),
        "kunlun_version": manifest["kunlun_version"],
    }


def _span(time: list[int] | None) -> list[str] | None:
    if time is None:
        return None
    return [datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") for ms in time]
