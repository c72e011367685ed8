"""Predictions on disk: Parquet that joins the raw logs, and the input of comparisons.

Columns: split, row (index in the impressions as they were prepared, from 0, file after file), user
and item (raw ids), time (of the request, int64 ms), group, weight, and per task p.TASK and
label.TASK (null = unknown or not there).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kunlun.errors import RunError
from kunlun.training.scoring import Scored


def keys(dataset: Any, split: str) -> pa.Table:
    """The columns split, row, user, item and time of a split, in sample order."""
    ids = {
        kind: dataset.ids(f"{kind}s").take(pa.array(dataset.column(split, kind)))
        for kind in ("user", "item")
    }
    numbers = {name: dataset.column(split, name) for name in ("row", "time")}
    return pa.table(
        {
            "split": pa.repeat(split, dataset.rows(split)),
            "row": numbers["row"],
            **ids,
            "time": numbers["time"],
        }
    )


def table(scored: Scored, tasks: list[str], keys: pa.Table) -> pa.Table:
    """All columns of the scored rows, which `keys` tells apart."""
    columns = dict(zip(keys.column_names, keys.columns, strict=True))
    columns |= {"group": scored.group.numpy(), "weight": scored.weights.numpy()}
    probability = scored.logits.double().sigmoid().numpy()
    columns |= {f"p.{task}": probability[:, i] for i, task in enumerate(tasks)}
    for i, task in enumerate(tasks):
        labels = scored.labels[:, i].numpy()
        columns[f"label.{task}"] = pa.array(labels, mask=np.isnan(labels))
    return pa.table(columns)


def write(tables: Sequence[pa.Table], file: Path) -> None:
    """Write tables one after another; the file appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.writing")
    try:
        pq.write_table(pa.concat_tables(tables), aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def check_place(file: Path) -> None:
    """Raises RunError if no file can be written there; before hours of scoring, not after."""
    if file.is_dir():
        raise RunError(f"{file} is a directory, which a file cannot replace; give a file")
    for parent in file.parents:
        if parent.exists() and not parent.is_dir():
            raise RunError(f"{parent} is a file, not a directory; give a file in a directory")


def read(file: Path) -> dict[str, np.ndarray]:
    """Columns as numpy arrays, unknown labels as NaN. Raises RunError if there is no such file."""
    if not file.is_file():
        raise RunError(f"{file}: no predictions; run `kunlun evaluate {file.parent.parent}` first")
    table = pq.read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}
