"""Small random logs with ties, idle users and list histories, and the schema that reads them."""

from __future__ import annotations

import copy
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import yaml

START = 1_700_000_000_000  # ms
STEP = 1_000
MOMENTS = 40  # few, so that impressions and events tie

Rows = dict[str, list[Any]]
Logs = dict[str, Rows]


def iso(ms: int) -> str:
    """ISO time with zone."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def moment(step: int) -> int:
    """Time of a step, ms."""
    return START + step * STEP


def random_logs(seed: int, impressions: int = 120, events: int = 200) -> Logs:
    """Logs over MOMENTS steps; user 9 has no event, user 8 no impression, item 7 no attributes."""
    rng = random.Random(seed)

    def times(n: int) -> list[int]:
        return [moment(rng.randrange(MOMENTS)) for _ in range(n)]

    click = [rng.choice([0, 1]) for _ in range(impressions)]
    impression_rows: Rows = {
        "user_id": [rng.choice([0, 1, 2, 3, 9]) for _ in range(impressions)],
        "item_id": [rng.randrange(8) for _ in range(impressions)],
        "time": [moment(0), moment(24), moment(32), *times(impressions - 3)],
        "page": [rng.choice(["home", "feed", None]) for _ in range(impressions)],
        "position": [rng.random() * 10 for _ in range(impressions)],
        "click": click,
        "buy": [rng.choice([0, 1, None]) for _ in click],
        "session": [rng.randrange(30) for _ in range(impressions)],
        "p": [rng.random() for _ in range(impressions)],
    }
    event_rows: Rows = {
        "user_id": [rng.choice([0, 1, 2, 3, 8]) for _ in range(events)],
        "item_id": [rng.randrange(10) for _ in range(events)],
        "time": times(events),
        "type": ["view", "click", "other", *rng.choices(["view", "click", "other"], k=events - 3)],
        "dwell": [rng.random() for _ in range(events)],
        "page": [rng.choice(["home", "feed", "new", None]) for _ in range(events)],
    }
    user_rows: Rows = {
        "user_id": [9, 8, 0, 1, 2, 3, 100],
        "country": ["de", "fr", "de", None, "it", "fr", "es"],
        "age": [30.0, 22.0, None, 41.0, 35.0, 28.0, 77.0],
        "seen": [[], [1, 2], [3, 3, 4], None, [5], [6, 0, 1, 2, 3, 4], [9]],
        "seen_time": [None, *[moment(s) for s in (0, 3, 5, 7, 10, 2)]],
        "joined": [
            *("2023-11-01", "2023-11-02", None, "2023-10-01", "2023-09-09", "2023-11-03"),
            "2022-01-01",
        ],
    }
    item_rows: Rows = {
        "item_id": [0, 1, 2, 3, 4, 5, 6, 8, 9],
        "brand": ["a", "b", "a", "c", "b", "a", None, "d", "d"],
        "tags": ["x,y", "y", None, "z,x,y", "x", "", "w", "x", "v"],
    }
    return {
        "impressions": impression_rows,
        "events": event_rows,
        "users": user_rows,
        "items": item_rows,
    }


def schema() -> dict[str, Any]:
    """A schema that uses every kind of feature, as a plain mapping; change it freely."""
    ids = {"user": "user_id", "item": "item_id", "time": "time"}
    tables = {
        "impressions": {"files": "impressions.parquet", **ids},
        "events": {"files": "events.parquet", **ids, "type": "type"},
        "users": [{"files": "users.parquet", "key": "user_id", "utc_offset": 0}],
        "items": [{"files": "items.parquet", "key": "item_id"}],
    }
    features = {
        "user_id": {"role": "user", "kind": "categorical"},
        "country": {"role": "user", "kind": "categorical"},
        "age": {"role": "user", "kind": "numeric", "missing": "token"},
        "tenure": {"role": "user", "kind": "timestamp", "column": "joined", "part": "age",
                   "missing": "token"},
        "n_seen": {"role": "user", "kind": "numeric", "column": "seen", "part": "length",
                   "missing": "value", "fill": -1.0, "transform": "none"},
        "item_id": {"role": "item", "kind": "categorical", "min_count": 2},
        "brand": {"role": "item", "kind": "categorical"},
        "tags": {"role": "item", "kind": "multi", "separator": ",", "max_len": 2},
        "tag": {"role": "item", "kind": "categorical", "column": "tags", "part": "first",
                "separator": ","},
        "page": {"role": "context", "kind": "categorical"},
        "position": {"role": "context", "kind": "numeric", "buckets": 4},
        "hour": {"role": "context", "kind": "timestamp", "part": "hour"},
        "user_ctr": {"role": "context", "kind": "counter", "keys": ["user_id"], "label": "click",
                     "strength": 3.0, "transform": "none"},
        "brand_acts": {"role": "context", "kind": "counter", "keys": ["user_id", "brand"],
                       "of": "view", "label": "acts", "strength": 2.0, "delay": 1.0,
                       "transform": "none"},
        "brand_page": {"role": "context", "kind": "counter", "keys": ["brand", "page"],
                       "label": "buy", "strength": 5.0, "delay": 2.0, "transform": "none"},
    }  # fmt: skip
    events = {
        "view": {
            "max_len": 5,
            "item_features": ["item_id", "brand"],
            "features": {
                "dwell": {"role": "event", "kind": "numeric", "missing": "token"},
                "page": {"role": "event", "kind": "categorical"},
            },
            "lists": {"column": "seen", "time": "seen_time"},
        },
        "acts": {"max_len": 3, "types": ["click", "other"], "item_features": ["item_id"]},
    }
    return copy.deepcopy(
        {
            "tables": tables,
            "split": {
                "start": iso(moment(0)),
                "valid": iso(moment(24)),
                "test": iso(moment(32)),
                "end": iso(moment(38)),
            },
            "labels": {"click": {"truth": "p"}, "buy": {"given": "click"}},
            "features": features,
            "events": events,
            "group": "session",
        }
    )


def write(
    folder: Path, logs: Logs, body: dict[str, Any] | None = None, kind: str = "parquet"
) -> Path:
    """Write tables and schema.yaml; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in logs.items():
        table = pa.table(rows)
        if kind == "csv":
            csv.write_csv(table, folder / f"{name}.csv")
        else:
            pq.write_table(table, folder / f"{name}.parquet")
    path = folder / "schema.yaml"
    path.write_text(yaml.safe_dump(body or schema(), sort_keys=False))
    return path
