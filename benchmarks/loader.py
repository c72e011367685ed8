"""Rate and memory of the loader: three event types, histories of about 50 events each.

    python benchmarks/loader.py [--samples 500000] [--workers 0 1] [--batch-size 1024] [--out FILE]

Logs are drawn at random, prepared as any user's would be, and one shuffled epoch of train is
read. Rates are of this process alone and contain no model. Memory is resident minus the pages of
memory-mapped files, so what grows with the log is seen; it is taken at every tenth of the epoch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from kunlun.data.dataset import Dataset
from kunlun.data.loader import Loader
from kunlun.data.prepare import prepare

DAY = 86_400_000
START, DAYS = 1_700_000_000_000, 20
TYPES, MEAN_HISTORY, MAX_LEN = ("view", "click", "buy"), 50, 100
USERS, ITEMS = 20_000, 50_000


def write_logs(folder: Path, samples: int, seed: int = 0) -> Path:
    """Random logs; half of a user's events lie before the first request. Returns the schema."""
    rng = np.random.default_rng(seed)
    first = START + DAYS * DAY // 2
    impressions = {
        "user_id": rng.integers(0, USERS, samples),
        "item_id": rng.integers(0, ITEMS, samples),
        "time": np.sort(rng.integers(first, START + DAYS * DAY, samples)),
        "click": rng.integers(0, 2, samples),
        "device": rng.integers(0, 5, samples),
    }
    count = int(USERS * MEAN_HISTORY * len(TYPES) / 0.72)  # the mean cut lies at 72% of the span
    events = {
        "user_id": rng.integers(0, USERS, count),
        "item_id": rng.integers(0, ITEMS, count),
        "time": np.sort(rng.integers(START, START + DAYS * DAY, count)),
        "type": np.array(TYPES)[rng.integers(0, len(TYPES), count)],
    }
    users = {"user_id": np.arange(USERS)}
    users |= {f"u{i}": rng.integers(0, 50, USERS) for i in range(10)}
    items = {"item_id": np.arange(ITEMS), "category": rng.integers(0, 100, ITEMS)}
    items |= {"brand": rng.integers(0, 5000, ITEMS), "price": rng.normal(size=ITEMS)}
    for name, columns in (
        ("impressions", impressions), ("events", events), ("users", users), ("items", items),
    ):  # fmt: skip
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    ids = {"user": "user_id", "item": "item_id", "time": "time"}
    of_item = {n: {"role": "item", "kind": "categorical"} for n in ("item_id", "category", "brand")}
    iso = [
        np.datetime_as_string(np.datetime64(START + int(DAYS * DAY * share), "ms")) + "Z"
        for share in (0.96, 0.98)
    ]
    schema: dict[str, Any] = {
        "tables": {
            "impressions": {"files": "impressions.parquet", **ids},
            "events": {"files": "events.parquet", **ids, "type": "type"},
            "users": [{"files": "users.parquet", "key": "user_id"}],
            "items": [{"files": "items.parquet", "key": "item_id"}],
        },
        "split": {"valid": iso[0], "test": iso[1]},
        "labels": {"click": {}},
        "features": {
            "user_id": {"role": "user", "kind": "categorical"},
            **{f"u{i}": {"role": "user", "kind": "categorical"} for i in range(10)},
            **of_item,
            "price": {"role": "item", "kind": "numeric"},
            "device": {"role": "context", "kind": "categorical"},
            "hour": {"role": "context", "kind": "timestamp", "part": "hour"},
        },
        "events": {t: {"max_len": MAX_LEN, "item_features": list(of_item)} for t in TYPES},
    }
    path = folder / "schema.yaml"
    path.write_text(yaml.safe_dump(schema, sort_keys=False))
    return path


def resident_mb() -> float:
    """Private resident memory in MB."""
    pages = [int(field) for field in Path("/proc/self/statm").read_text().split()]
    return (pages[1] - pages[2]) * 4096 / 1e6


def measure(dataset: Dataset, batch_size: int, workers: int) -> dict[str, Any]:
    """One epoch, timed from the first request to the last batch, worker start included."""
    loader = Loader(dataset, "train", batch_size=batch_size, shuffle=True, workers=workers)
    memory, rows, events = [], 0, 0
    start, busy = time.perf_counter(), time.process_time()
    for k, batch in enumerate(loader):
        rows += len(batch)
        events += sum(e.timestamps.shape[0] for e in batch.events.values())
        if k % max(1, len(loader) // 10) == 0:
            memory.append(round(resident_mb()))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {
        "workers": workers,
        "samples": rows,
        "samples_per_s": round(rows / seconds),
        "samples_per_cpu_s": round(rows / busy),  # of this process; others may share the cores
        "events_per_sample_and_type": round(events / rows / len(TYPES), 1),
        "memory_mb": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = write_logs(folder, args.samples)
        start = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # keeps our memory clean
            manifest = pool.apply(prepare, (schema, folder / "dataset"))
        seconds = time.perf_counter() - start
        dataset = Dataset.open(folder / "dataset")
        report = {
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),  # of the last minute, other programs included
            "batch_size": args.batch_size,
            "impressions": manifest["impressions"],
            "prepare_seconds": round(seconds, 1),
            "runs": [measure(dataset, args.batch_size, w) for w in args.workers],
        }
    text = json.dumps(report, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
