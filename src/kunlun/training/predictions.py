"""Predictions on disk: one Parquet file a split, the input of comparisons between runs.

Columns: row (index in the split), group, weight, and per task p.TASK and label.TASK (null =
unknown or not there).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kunlun.errors import RunError
from kunlun.training.scoring import Scored


def write(scored: Scored, tasks: list[str], file: Path) -> None:
    """Write all rows; the file appears complete or not at all."""
    columns = {
        "row": np.arange(len(scored.logits)),
        "group": scored.group.numpy(),
        "weight": scored.weights.numpy(),
    }
    probability = scored.logits.double().sigmoid().numpy()
    for i, task in enumerate(tasks):
        columns[f"p.{task}"] = probability[:, i]
    table = pa.table(columns)
    for i, task in enumerate(tasks):
        labels = scored.labels[:, i].numpy()
        table = table.append_column(f"label.{task}", pa.array(labels, mask=np.isnan(labels)))
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.writing")
    pq.write_table(table, aside)
    os.replace(aside, file)


def read(file: Path) -> dict[str, np.ndarray]:
    """Columns as numpy arrays, unknown labels as NaN. Raises RunError if there is no such file."""
    if not file.is_file():
        raise RunError(f"{file}: no predictions; run `kunlun evaluate {file.parent.parent}` first")
    table = pq.read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}
