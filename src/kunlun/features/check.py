"""What a schema may not say; every error names the key, what came and what to do."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kunlun.errors import SchemaError

if TYPE_CHECKING:
    from kunlun.features.schema import Feature, Schema

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# A model keeps one module an event type in an nn.ModuleDict, whose own attributes these are.
RESERVED = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu
    cuda double dump_patches eval extra_repr float forward get_buffer get_extra_state
    get_parameter get_submodule half ipu items keys load_state_dict modules mtia named_buffers
    named_children named_modules named_parameters parameters pop register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
    register_parameter register_state_dict_post_hook register_state_dict_pre_hook
    requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty train
    training type update values xpu zero_grad
    """.split()  # noqa: SIM905
)
PARTS = {
    "categorical": ("first",),
    "numeric": ("length",),
    "timestamp": ("hour", "weekday", "age"),
}
_EVERY = {"role", "kind", "column", "dim", "table", "size", "missing", "token"}
_OF_KIND = {  # kind -> the keys that mean something, besides those of every kind
    "categorical": {"hash_buckets", "min_count", "part", "separator"},
    "multi": {"hash_buckets", "min_count", "separator", "max_len"},
    "numeric": {"part", "separator", "fill", "transform", "buckets"},
    "timestamp": {"part", "utc_offset", "fill", "transform", "buckets"},
    "counter": {"keys", "label", "of", "strength", "delay", "transform", "buckets"},
}


def check(schema: Schema) -> None:
    """Raise SchemaError for the first thing that contradicts itself."""
    _names(schema)
    for name, feature in schema.features.items():
        _feature(f"features.{name}", feature)
        if feature.role == "event":
            raise SchemaError(f"features.{name}: role 'event' belongs under events.TYPE.features")
        _counter(schema, name, feature)
    for kind, event in schema.events.items():
        _at_least(1, f"events.{kind}.max_len", event.max_len)
        for name in event.item_features:
            _item_feature(schema, f"events.{kind}.item_features", name)
        for name, feature in event.features.items():
            _feature(f"events.{kind}.features.{name}", feature)
            if feature.role != "event":
                raise SchemaError(f"events.{kind}.features.{name}: role must be 'event'")
    for name, label in schema.labels.items():
        _at_least(0, f"labels.{name}.weight", label.weight)
    _conditions(schema)
    _leaks(schema)
    tables = schema.tables
    _offset("tables.impressions", tables.impressions.utc_offset)
    _offset("tables.events", tables.events.utc_offset if tables.events else None)
    for part in ("users", "items"):
        for i, table in enumerate(getattr(tables, part)):
            _offset(f"tables.{part}[{i}]", table.utc_offset)


def _names(schema: Schema) -> None:
    for what, values in (("labels", schema.labels), ("features", schema.features)):
        if not values:
            raise SchemaError(f"{what}: at least one is needed")
    _words("labels", schema.labels, "column")
    _words("features", schema.features, "column")
    _words("events", schema.events, "types")
    for kind, event in schema.events.items():
        if kind in RESERVED or kind.startswith("_"):
            raise SchemaError(
                f"events: '{kind}' is reserved; choose another name and set types: [{kind}]"
            )
        _words(f"events.{kind}.features", event.features, "column")


def _words(where: str, names: Iterable[str], instead: str) -> None:
    """Names become files, columns and modules."""
    for name in names:
        if not NAME.fullmatch(name):
            raise SchemaError(
                f"{where}: '{name}' is no name; use letters, digits and _ (at most 100, no digit "
                f"first), and `{instead}` for what the logs call it"
            )


def _feature(where: str, f: Feature) -> None:
    """One feature by itself."""
    if f.kind == "counter" and not (f.keys and f.label):
        raise SchemaError(f"{where}: a counter needs 'keys' and 'label'")
    parts = PARTS.get(f.kind, ())
    if f.kind == "timestamp" and f.part not in parts:
        raise SchemaError(f"{where}: a timestamp needs 'part': hour, weekday or age")
    if f.part is not None and f.part not in parts:
        raise SchemaError(
            f"{where}.part: '{f.part}' does not fit kind '{f.kind}'"
            + (f"; it may be {' or '.join(parts)}" if parts else "; drop it")
        )
    if f.role == "event" and f.part == "age":
        raise SchemaError(
            f"{where}: every model reads the age of an event already; drop this feature"
        )
    if f.role == "event" and f.kind in ("multi", "counter"):
        raise SchemaError(f"{where}: an event feature cannot be of kind '{f.kind}'")
    if f.missing == "value" and not (f.kind == "numeric" or f.part == "age"):
        raise SchemaError(f"{where}.missing: 'value' is for numbers; use token or error")
    for key, why in _idle(f).items():
        default = next(d for d in dataclasses.fields(f) if d.name == key)
        empty = [] if default.default is dataclasses.MISSING else default.default
        if getattr(f, key) != empty:
            raise SchemaError(f"{where}.{key} has no effect {why}; drop it")
    for key in ("hash_buckets", "dim", "min_count", "max_len"):
        _at_least(1, f"{where}.{key}", getattr(f, key))
    _at_least(2, f"{where}.buckets", f.buckets)
    _at_least(0, f"{where}.strength", f.strength)
    _at_least(0, f"{where}.delay", f.delay)
    if not math.isfinite(f.fill):
        raise SchemaError(f"{where}.fill is {f.fill}, expected a finite number")
    _offset(where, f.utc_offset)
    if f.table is not None and not NAME.fullmatch(f.table):
        _words(f"{where}.table", [f.table], "column")


def _idle(f: Feature) -> dict[str, str]:
    """Keys that would do nothing -> why."""
    known = {d.name for d in dataclasses.fields(f)} - _EVERY - _OF_KIND[f.kind]
    idle = dict.fromkeys(sorted(known), f"with kind '{f.kind}'")
    if f.kind == "counter":
        idle |= dict.fromkeys(("column", "missing"), "with kind 'counter'")
    if f.role == "event":
        idle["token"] = "with role 'event'"
    if f.part in ("hour", "weekday"):
        idle |= dict.fromkeys(("fill", "transform", "buckets"), f"with part: {f.part}")
    elif f.kind in ("numeric", "timestamp", "counter"):
        if f.buckets is None:
            idle |= dict.fromkeys(("dim", "table"), "without buckets")
        else:
            idle["transform"] = "with buckets"
        if f.missing != "value":
            idle.setdefault("fill", "without missing: value")
    if f.kind in ("categorical", "numeric") and f.part is None:
        idle["separator"] = f"without part: {PARTS[f.kind][0]}"
    if f.hash_buckets is not None:
        idle.setdefault("min_count", "with hash_buckets")
    return idle


def _at_least(least: int, where: str, value: float | None) -> None:
    if value is not None and not least <= value < math.inf:
        raise SchemaError(f"{where} is {value}, expected {least} or more")


def _offset(where: str, hours: float | None) -> None:
    if hours is not None and not abs(hours) <= 14:
        raise SchemaError(f"{where}.utc_offset is {hours}, expected hours from -14 to 14")


def _counter(schema: Schema, name: str, feature: Feature) -> None:
    known, what = (
        (schema.labels, "a label") if feature.of is None else (schema.events, "an event type")
    )
    for key in ("of", "label"):
        value = getattr(feature, key)
        if value is not None and value not in known:
            raise SchemaError(f"features.{name}.{key}: '{value}' is not {what}")
    for key in feature.keys if feature.of is not None else []:
        if key not in schema.features or schema.features[key].role not in ("user", "item"):
            raise SchemaError(
                f"features.{name}.keys: '{key}' is not a feature of role user or item; "
                "counters of events know no more than these"
            )


def _item_feature(schema: Schema, where: str, name: str) -> None:
    feature = schema.features.get(name)
    if feature is None or feature.role != "item":
        raise SchemaError(f"{where}: '{name}' is not a feature of role item")
    if feature.kind == "multi":
        raise SchemaError(f"{where}: '{name}' is multi; use its parts")
    if feature.kind == "counter" or feature.part == "age":
        raise SchemaError(f"{where}: '{name}' depends on the request's time")


def _conditions(schema: Schema) -> None:
    """`given` names a label, and following it ends."""
    for start in schema.labels:
        seen, name = [start], schema.labels[start].given
        while name is not None:
            if name not in schema.labels:
                raise SchemaError(f"labels.{seen[-1]}.given: '{name}' is not a label")
            if name in seen:
                path = ", ".join([*seen, name])
                raise SchemaError(
                    f"labels.{start}.given: {path} go round in a circle; a condition must end in "
                    "a plain label"
                )
            seen.append(name)
            name = schema.labels[name].given


def _leaks(schema: Schema) -> None:
    """No feature is the column of a label, and no counter is keyed by one."""
    answers: dict[str, str] = {}
    for name, label in schema.labels.items():
        answers.setdefault(label.column or name, f"labels.{name}.column")
        if label.truth is not None:
            answers.setdefault(label.truth, f"labels.{name}.truth")
    for name, feature in schema.features.items():
        read = []
        if feature.kind == "counter":
            read = [("keys", key) for key in feature.keys if key not in schema.features]
        elif feature.role == "context" and (feature.column or feature.kind != "timestamp"):
            read = [("column", feature.column or name)]
        for key, column in read:
            if column in answers:
                raise SchemaError(
                    f"features.{name}.{key}: '{column}' is {answers[column]}; a model would read "
                    "its own answer: drop it"
                )
