"""manifest.json: what a dataset directory holds, from what it was made, and its floor of NE."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kunlun.data.event_store import EventTable
from kunlun.data.source import Log
from kunlun.data.values import Float64, Int64
from kunlun.features.schema import Schema

PERCENTILES = (10, 25, 50, 75, 90, 99, 100)


def entropy(p: Float64 | float) -> Float64:
    """Binary entropy in nats; 0 at p = 0 and 1."""
    p = np.asarray(p, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return np.nan_to_num(found, nan=0.0)


def describe(
    log: Log,
    schema: Schema,
    splits: dict[str, Int64],
    labels: dict[str, Float64],
    truths: dict[str, Float64],
    stores: dict[str, EventTable],
    samples: dict[str, Any],
) -> dict[str, Any]:
    """The manifest as plain values; the same logs give the same manifest."""
    tables = [log.impressions, log.events, *log.users.tables, *log.items.tables]
    inputs = {name: path for t in tables if t is not None for name, path in t.inputs().items()}
    chosen = np.concatenate(list(splits.values()))
    return {
        "kunlun_version": _version(),
        "splits": {name: _split(log, rows, labels, truths) for name, rows in splits.items()},
        "impressions": len(log.time),
        "outside_split": len(log.time) - len(chosen),
        "users": len(log.users),
        "items": len(log.items),
        "events": {
            kind: _events(store, samples[f"cut_{kind}"][chosen], log.user[chosen])
            for kind, store in stores.items()
        },
        "tables": {t: {"size": s, "dim": d} for t, (s, d) in schema.table_sizes.items()},
        "inputs": {name: _file(path) for name, path in inputs.items()},
    }


def missing_past(
    log: Log, stores: dict[str, EventTable], like: Path, old: dict[str, Any]
) -> list[str]:
    """One line for each log that begins later than that of the dataset `like`, whose manifest is
    `old`, although histories or counters are made of it."""
    counters = [f for f in log.schema.features.values() if f.kind == "counter"]
    known = [split["time"][0] for split in old["splits"].values() if split["time"]]
    begins = []
    if known and any(f.of is None for f in counters):
        begins.append(("impressions", log.time, min(known), "counters"))
    what = "histories and counters" if any(f.of for f in counters) else "histories"
    for kind, store in stores.items():
        was = old["events"].get(kind, {}).get("time")
        if was is not None:
            begins.append((f"events of type '{kind}'", store.time, was[0], what))
    return [
        f"{name} begin {iso(time.min())}, those of {like} {iso(was)}: {made} miss what came "
        f"before: add the earlier files to tables.{name.split()[0]}.files"
        if len(time)
        else f"there are no {name}, unlike in {like}: {made} miss them"
        for name, time, was, made in begins
        if not len(time) or time.min() > was
    ]


def iso(ms: int) -> str:
    """UTC time as text, without fractions that are 0."""
    return datetime.fromtimestamp(int(ms) / 1000, UTC).replace(tzinfo=None).isoformat()


def _split(
    log: Log, rows: Int64, labels: dict[str, Float64], truths: dict[str, Float64]
) -> dict[str, Any]:
    return {
        "rows": len(rows),
        "users": int(np.count_nonzero(np.bincount(log.user[rows]))),
        "time": [int(log.time[rows[0]]), int(log.time[rows[-1]])] if len(rows) else None,
        "labels": {
            name: _label(y[rows], truths[name][rows] if name in truths else None)
            for name, y in labels.items()
        },
    }


def _label(y: Float64, truth: Float64 | None) -> dict[str, Any]:
    known = ~np.isnan(y)
    rate = float(y[known].mean()) if known.any() else None
    found: dict[str, Any] = {"known": int(known.sum()), "rate": rate}
    found["entropy"] = None if rate is None else float(entropy(rate))
    if truth is not None and found["entropy"]:
        found["ne_floor"] = float(entropy(truth[known]).mean()) / found["entropy"]
    return found


def _events(store: EventTable, cut: Int64, user: NDArray[np.int32]) -> dict[str, Any]:
    lengths = cut - store.offsets[user]
    points = np.percentile(lengths, PERCENTILES, method="nearest") if len(lengths) else []
    return {
        "events": len(store.time),
        "seeded": int((store.source < 0).sum()),
        "users": int((np.diff(store.offsets) > 0).sum()),
        "time": [int(store.time.min()), int(store.time.max())] if len(store.time) else None,
        "history": {
            "mean": float(lengths.mean()) if len(lengths) else 0.0,
            **{f"p{p}": int(v) for p, v in zip(PERCENTILES, points, strict=True)},
        },
    }


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _version() -> str:
    try:
        return version("kunlun-rec")
    except PackageNotFoundError:
        return "unknown"
