"""What a schema may not say: one line with the key, what is wrong and what to do."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from torch import nn

from kunlun.config import parse
from kunlun.errors import SchemaError
from kunlun.features.check import RESERVED
from kunlun.features.schema import Feature, Schema

BASE: dict[str, Any] = {
    "tables": {"impressions": {"files": "i.parquet", "user": "u", "item": "i", "time": "t"}},
    "split": {"valid": "2024-01-01T00:00:00Z", "test": "2024-01-02T00:00:00Z"},
    "labels": {"click": {"column": "clicked", "truth": "p"}, "buy": {"given": "click"}},
    "features": {
        "user": {"role": "user", "kind": "categorical"},
        "item": {"role": "item", "kind": "categorical"},
    },
    "events": {"view": {"max_len": 5, "item_features": ["item"]}},
}


def schema(**changes: Any) -> Schema:
    """The base with `a__b=value` put at a.b."""
    body = copy.deepcopy(BASE)
    for path, value in changes.items():
        node = body
        *parents, last = path.split("__")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return parse(Schema, body, "schema.yaml")


def refused(message: str, **changes: Any) -> None:
    with pytest.raises(SchemaError, match=rf"^schema\.yaml: {message}") as caught:
        schema(**changes)
    assert "\n" not in str(caught.value)


def feature(kind: str, **keys: Any) -> dict[str, Any]:
    return {"role": "context", "kind": kind, **keys}


def test_the_base_is_a_schema() -> None:
    assert schema().tasks == ["click", "buy"]


LEAKS = [
    (feature("categorical", column="clicked"), "x.column: 'clicked' is labels.click.column"),
    (feature("numeric", column="p"), "x.column: 'p' is labels.click.truth"),
    (feature("counter", keys=["item", "buy"], label="click"), "x.keys: 'buy' is labels.buy.column"),
]


@pytest.mark.parametrize(("value", "message"), LEAKS)
def test_no_feature_is_a_label(value: dict[str, Any], message: str) -> None:
    refused(rf"features\.{message}; a model would read its own answer: drop it", features__x=value)


def test_a_feature_named_like_a_label_is_the_label() -> None:
    refused("features.buy.column: 'buy' is labels.buy.column", features__buy=feature("numeric"))
    other = {"role": "user", "kind": "numeric"}  # a column of the users table
    assert "buy" in schema(features__buy=other).features


def test_labels_hang_together() -> None:
    refused(
        r"labels\.a\.given: a, b, a go round in a circle; a condition must end in a plain label",
        labels__a={"given": "b"},
        labels__b={"given": "a"},
    )
    refused(r"labels\.click\.given: click, click go round", labels__click={"given": "click"})
    refused(r"labels\.buy\.given: 'cart' is not a label", labels__buy={"given": "cart"})


IDLE = [
    ("numeric", {"hash_buckets": 50}, "hash_buckets has no effect with kind 'numeric'; drop it"),
    ("numeric", {"keys": ["item"]}, "keys has no effect with kind 'numeric'"),
    ("numeric", {"min_count": 3}, "min_count has no effect with kind 'numeric'"),
    ("numeric", {"dim": 8}, "dim has no effect without buckets"),
    ("numeric", {"table": "x"}, "table has no effect without buckets"),
    ("numeric", {"fill": 1.0}, "fill has no effect without missing: value"),
    ("numeric", {"fill": 1.0, "missing": "token"}, "fill has no effect without missing: value"),
    ("numeric", {"separator": ","}, "separator has no effect without part: length"),
    ("numeric", {"buckets": 4, "transform": "log1p"}, "transform has no effect with buckets"),
    ("categorical", {"buckets": 4}, "buckets has no effect with kind 'categorical'"),
    ("categorical", {"transform": "log1p"}, "transform has no effect with kind 'categorical'"),
    ("categorical", {"separator": ","}, "separator has no effect without part: first"),
    ("categorical", {"max_len": 3}, "max_len has no effect with kind 'categorical'"),
    ("categorical", {"hash_buckets": 9, "min_count": 2}, "min_count has no effect with hash_b"),
    ("multi", {"utc_offset": 3}, "utc_offset has no effect with kind 'multi'"),
    ("timestamp", {"part": "hour", "buckets": 4}, "buckets has no effect with part: hour"),
    ("counter", {"column": "c"}, "column has no effect with kind 'counter'"),
    ("counter", {"missing": "token"}, "missing has no effect with kind 'counter'"),
]


@pytest.mark.parametrize(("kind", "keys", "message"), IDLE)
def test_no_key_is_silently_ignored(kind: str, keys: dict[str, Any], message: str) -> None:
    if kind == "counter":
        keys = {"keys": ["item"], "label": "click", **keys}
    refused(rf"features\.x\.{message}", features__x=feature(kind, **keys))
    if kind not in ("counter", "multi"):
        of_event = {"role": "event", "kind": kind, **keys}
        refused(rf"events\.view\.features\.x\.{message}", events__view__features={"x": of_event})


def test_events_have_no_tokens() -> None:
    value = {"role": "event", "kind": "numeric", "token": "t"}
    refused(
        r"events\.view\.features\.x\.token has no effect with role 'event'",
        events__view__features={"x": value},
    )


WORKING = [
    feature("numeric", buckets=4, dim=8, table="y", missing="token"),
    feature("numeric", missing="value", fill=-1.0, transform="quantile"),
    feature("numeric", part="length", separator=","),
    feature("categorical", part="first", separator=",", min_count=2),
    feature("multi", separator=",", max_len=3, hash_buckets=9, missing="error"),
    feature("timestamp", part="weekday", utc_offset=-3.5, dim=4, missing="token"),
    feature("timestamp", part="age", column="c", buckets=4, dim=4),
    feature("counter", keys=["item"], label="click", buckets=4, dim=4, token="c"),
    feature("counter", keys=["item"], of="view", label="view", delay=60, transform="log1p"),
]


@pytest.mark.parametrize("value", WORKING, ids=lambda v: v["kind"])
def test_keys_that_work(value: dict[str, Any]) -> None:
    found = schema(features__x=value)
    resolved = dataclasses.replace(found.features["x"], size=7)  # as prepare writes it
    assert parse(Schema, found.to_dict(), "again") == found
    assert schema(features__x=resolved.to_dict()).features["x"] == resolved


RANGES = [
    ({"features__x": feature("categorical", hash_buckets=0)}, "features.x.hash_buckets is 0, exp"),
    ({"features__x": feature("categorical", dim=0)}, "features.x.dim is 0, expected 1 or more"),
    ({"features__x": feature("categorical", min_count=0)}, "features.x.min_count is 0, expected 1"),
    ({"features__x": feature("multi", max_len=0)}, "features.x.max_len is 0, expected 1 or more"),
    ({"features__x": feature("numeric", buckets=1)}, "features.x.buckets is 1, expected 2 or more"),
    ({"features__x": feature("numeric", missing="value", fill=float("nan"))}, "features.x.fill is"),
    ({"features__x": feature("timestamp", part="hour", utc_offset=800)},
     "features.x.utc_offset is 800.0, expected hours from -14 to 14"),
    ({"features__x": feature("counter", keys=["item"], label="click", strength=-1)},
     "features.x.strength is -1.0, expected 0 or more"),
    ({"events__view__max_len": 0}, "events.view.max_len is 0, expected 1 or more"),
    ({"labels__click__weight": -1.0}, "labels.click.weight is -1.0, expected 0 or more"),
    ({"tables__impressions__utc_offset": 15}, "tables.impressions.utc_offset is 15.0, expected ho"),
    ({"tables__users": [{"files": "u.csv", "utc_offset": -15}]}, r"tables.users\[0\].utc_offset"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), RANGES, ids=lambda v: str(v)[:40])
def test_ranges(changes: dict[str, Any], message: str) -> None:
    refused(message, **changes)


SHAPES = [
    (feature("counter"), "features.x: a counter needs 'keys' and 'label'"),
    (feature("timestamp"), "features.x: a timestamp needs 'part': hour, weekday or age"),
    (
        feature("numeric", part="hour"),
        "features.x.part: 'hour' does not fit kind 'numeric'; it may",
    ),
    (feature("multi", part="first"), "features.x.part: 'first' does not fit kind 'multi'; drop it"),
    (feature("categorical", missing="value"), "features.x.missing: 'value' is for numbers; use"),
    (
        {"role": "event", "kind": "numeric"},
        "features.x: role 'event' belongs under events.TYPE.fea",
    ),
]


@pytest.mark.parametrize(("value", "message"), SHAPES)
def test_shapes(value: dict[str, Any], message: str) -> None:
    refused(message, features__x=value)


@pytest.mark.parametrize("name", ["a/b", "a.b", "", "x.missing", "2nd", "a b", "x" * 101])
def test_names_are_words(name: str) -> None:
    words = "is no name; use letters, digits and _ \\(at most 100, no digit first\\)"
    column = feature("numeric", column="c")
    refused(f"features: '{name}' {words}, and `column` for", **{"features": {name: column}})
    refused(f"events: '{name}' {words}, and `types` for", **{"events": {name: {"max_len": 3}}})
    refused(f"labels: '{name}' {words}, and `column`", **{"labels": {name: {"column": "c"}}})
    of_event = {name: {"role": "event", "kind": "numeric"}}
    refused(rf"events\.view\.features: '{name}' {words}", events__view__features=of_event)
    if name:
        refused(f"features.x.table: '{name}' {words}", features__x=feature("multi", table=name))


@pytest.mark.parametrize("name", ["update", "keys", "training", "type", "_modules"])
def test_event_types_are_not_attributes_of_a_module(name: str) -> None:
    refused(
        rf"events: '{name}' is reserved; choose another name and set types: \[{name}\]",
        **{"events": {name: {"max_len": 3}}},
    )


def test_reserved_names_are_those_of_torch() -> None:
    missing = {name for name in dir(nn.ModuleDict()) if not name.startswith("_")} - RESERVED
    assert not missing


def test_a_model_needs_something_to_read() -> None:
    refused("features: at least one is needed", features={}, events={})
    refused("labels: at least one is needed", labels={})


def test_a_number_names_itself() -> None:
    assert Feature(role="user", kind="numeric").missing is None
