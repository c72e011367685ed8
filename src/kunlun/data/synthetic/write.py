"""Write the stream as raw logs, the way a user of the package would have them."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kunlun.data.directory import check_free, whole
from kunlun.data.synthetic.config import SyntheticConfig
from kunlun.data.synthetic.simulate import Chunk, generate, make_lab
from kunlun.data.synthetic.world import DENSE, EVENT_TYPES, Array, World

_IMPRESSION_COLUMNS = {
    "user_id": pa.int64(),
    "item_id": pa.int64(),
    "timestamp": pa.int64(),
    "device": pa.int8(),
    "placement": pa.int8(),
    "click": pa.int8(),
    "conversion": pa.int8(),  # null unless clicked
    "p_click": pa.float32(),
    "p_conversion": pa.float32(),
}
_EVENT_TYPE = pa.dictionary(pa.int8(), pa.string())


def write_raw(config: SyntheticConfig, out: Path) -> None:
    """Write impressions, events, users and items as Parquet, and the schema.yaml that reads them.

    Streams chunk by chunk; `out` appears complete or not at all. Raises DataError if it exists
    and is not empty.
    """
    with whole(out) as temporary:
        world = make_lab(config).world
        writers = {
            name: pq.ParquetWriter(temporary / f"{name}.parquet", schema)
            for name, schema in (
                ("impressions", pa.schema(list(_IMPRESSION_COLUMNS.items()))),
                ("events", _events_schema()),
                ("users", _users_schema()),
            )
        }
        try:
            for chunk in generate(config):
                writers["impressions"].write_table(_impressions(chunk))
                writers["events"].write_table(_events(chunk))
                writers["users"].write_table(_users(chunk))
        finally:
            for writer in writers.values():
                writer.close()
        pq.write_table(_items(config, world), temporary / "items.parquet")
        (temporary / "schema.yaml").write_text(_schema_text(config))


def synthesize(config: SyntheticConfig, out: Path) -> dict[str, Any]:
    """Write a ready dataset directory; returns its manifest.

    Its key "synthetic" holds the configuration and the click label's floor over all splits. The
    raw logs live in a temporary folder beside `out` and are removed at the end.
    """
    from kunlun.data.prepare import prepare

    check_free(out)
    raw = out.with_name(f"{out.name}.raw-{os.getpid()}")
    try:
        write_raw(config, raw)
        manifest = prepare(raw / "schema.yaml", out)
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    manifest = {
        **manifest,
        "synthetic": {"config": config.to_dict(), "ne_floor": _overall_floor(manifest)},
    }
    partial = out / ".manifest.json"
    partial.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(partial, out / "manifest.json")
    return manifest


def _overall_floor(manifest: dict[str, Any]) -> float:
    """Normalised entropy of the true p over all splits together."""
    splits = [split["labels"]["click"] for split in manifest["splits"].values()]
    rows = np.array([s["known"] for s in splits])
    loss = np.array([s["ne_floor"] * s["entropy"] for s in splits]) @ rows / rows.sum()
    rate = np.array([s["rate"] for s in splits]) @ rows / rows.sum()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def raw_schema(config: SyntheticConfig) -> dict[str, Any]:
    """The schema of the written logs as a plain mapping, valid for `kunlun.features.Schema`."""
    # No user_id: the truth does not depend on it, and a table row a user would only overfit.
    features: dict[str, Any] = {
        "country": {"role": "user", "kind": "categorical", "dim": 8},
        **{f"d{i}": {"role": "user", "kind": "numeric"} for i in range(DENSE)},
        "hour": {
            "role": "context",
            "kind": "timestamp",
            "column": "timestamp",
            "part": "hour",
            "dim": 8,
        },
        "device": {"role": "context", "kind": "categorical", "dim": 8},
        "placement": {
            "role": "context",
            "kind": "categorical",
            "dim": 8,
            "table": "placement",
        },
        "item_id": {"role": "item", "kind": "categorical", "dim": 32},
        "category": {"role": "item", "kind": "categorical", "dim": 8},
        "subcategory": {"role": "item", "kind": "categorical", "dim": 16},
    }
    if config.content == "visible":
        for i in range(config.latent):
            features[f"x{i}"] = {"role": "item", "kind": "numeric"}
    of_item = [name for name, f in features.items() if f["role"] == "item"]
    placement = {"placement": {**features["placement"], "role": "event"}}
    valid, test = (
        datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for ms in make_lab(config).split
    )
    ids = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    return {
        "tables": {
            "impressions": {"files": "impressions.parquet", **ids},
            "events": {"files": "events.parquet", **ids, "type": "event_type"},
            "users": [{"files": "users.parquet", "key": "user_id"}],
            "items": [{"files": "items.parquet", "key": "item_id"}],
        },
        "split": {"valid": valid, "test": test},
        "labels": {
            "click": {"truth": "p_click"},
            "conversion": {"given": "click", "truth": "p_conversion"},
        },
        "features": features,
        "events": {
            name: {"max_len": length, "item_features": of_item, "features": placement}
            for name, length in zip(EVENT_TYPES, config.history, strict=True)
        },
    }


_HEAD = """\
# Raw logs of a synthetic stream whose true click probability is known (columns p_click and
# p_conversion, for measuring only). Times are ms since 1970. The event type "impression" means
# shown and not clicked; a click and a conversion carry the time of their impression.
"""


def _schema_text(config: SyntheticConfig) -> str:
    """YAML with one line a feature."""
    import yaml

    body = json.loads(json.dumps(raw_schema(config)))  # plain copies: no YAML anchors
    parts = [
        yaml.safe_dump({key: body[key]}, sort_keys=False, default_flow_style=None, width=100)
        for key in body
    ]
    return "\n".join([_HEAD, *parts])


def _impressions(chunk: Chunk) -> pa.Table:
    columns = chunk.impressions()
    arrays = []
    for name, kind in _IMPRESSION_COLUMNS.items():
        mask = ~columns["click"] if name == "conversion" else None
        arrays.append(pa.array(columns[name].astype(kind.to_pandas_dtype()), kind, mask=mask))
    return pa.table(arrays, schema=pa.schema(list(_IMPRESSION_COLUMNS.items())))


def _events_schema() -> pa.Schema:
    return pa.schema(
        [
            ("user_id", pa.int64()),
            ("item_id", pa.int64()),
            ("timestamp", pa.int64()),
            ("event_type", _EVENT_TYPE),
            ("placement", pa.int8()),
        ]
    )


def _events(chunk: Chunk) -> pa.Table:
    columns = chunk.events()
    kind = pa.DictionaryArray.from_arrays(
        columns["event_type"].astype(np.int8), pa.array(EVENT_TYPES)
    )
    columns = {**columns, "event_type": kind, "placement": columns["placement"].astype(np.int8)}
    schema = _events_schema()
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _users_schema() -> pa.Schema:
    dense = [(f"d{i}", pa.float32()) for i in range(DENSE)]
    return pa.schema([("user_id", pa.int64()), ("country", pa.int8()), *dense])


def _users(chunk: Chunk) -> pa.Table:
    line = chunk.line
    columns: list[Array] = [line.user_id, line.country.astype(np.int8)]
    columns += [np.ascontiguousarray(line.dense[:, i]) for i in range(DENSE)]
    return pa.table(columns, schema=_users_schema())


def _items(config: SyntheticConfig, world: World) -> pa.Table:
    columns: dict[str, Array] = {
        "item_id": np.arange(config.items),
        "category": world.category.astype(np.int16),
        "subcategory": world.subcategory.astype(np.int16),
    }
    if config.content == "visible":
        for i in range(config.latent):
            columns[f"x{i}"] = np.ascontiguousarray(world.content[:, i])
    return pa.table(columns)
