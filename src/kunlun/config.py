"""Configurations: frozen dataclasses inside, validated YAML at the edge.

Only the functions import yaml and pydantic, so layers and models can use `Config` with nothing
but the standard library.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from kunlun.errors import ConfigError, UserError

T = TypeVar("T")


class Config:
    """Base of every configuration dataclass; unknown keys are errors at every depth."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "coerce_numbers_to_str": True,  # a run or folder named 20240501
    }

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, as YAML and JSON write it."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


def at_least_one(where: str, **numbers: int | None) -> None:
    """Raise ConfigError for the first of these keys that is below 1; None is fine.

    where: the section they stand in, with its dot, or nothing.
    """
    for key, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"{where}{key} is {number}, expected 1 or more")


def parse(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """Validate `values` into the dataclass `kind`.

    Raises ConfigError with one line: source, dotted key, what came, what was expected.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(_explain(kind, error.errors()[0], source)) from None
    except UserError as error:  # raised by a __post_init__
        raise type(error)(f"{source}: {error}") from None


def _explain(kind: type, problem: Mapping[str, Any], source: str) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path) or "(top level)"
    if problem["type"] == "unexpected_keyword_argument":
        owner = _owner(kind, path[:-1])
        known = [f.name for f in dataclasses.fields(owner)] if owner is not None else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        name = owner.__name__ if owner is not None else kind.__name__
        return f"{source}: {key} is not a field of {name}; {hint}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{source}: {key} is missing; add it"
    if problem["type"] == "value_error":
        return f"{source}: {key}: {problem['ctx']['error']}"
    return f"{source}: {key} is {problem['input']!r}; {problem['msg'].lower()}"


def _owner(kind: Any, path: list[str]) -> Any:
    """The dataclass at a dotted path (dict and list entries step through), or None."""
    for part in path:
        if dataclasses.is_dataclass(kind):
            kind = get_type_hints(kind).get(part)
        else:
            inner = [a for a in getattr(kind, "__args__", ()) if a not in (str, type(None))]
            kind = inner[-1] if inner else None
        options = [a for a in getattr(kind, "__args__", ()) if dataclasses.is_dataclass(a)]
        origin_is_dict = getattr(kind, "__origin__", None) in (dict, list, tuple)
        if options and not origin_is_dict:
            kind = options[0]
    return kind if dataclasses.is_dataclass(kind) else None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError naming file and line."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or error.__class__.__name__
        raise ConfigError(f"{path}{where}: not valid YAML ({what})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top level")
    return values


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping, keys in the given order."""
    path.write_text(to_yaml(values))


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of a plain mapping, keys in the given order."""
    import yaml

    plain = json.loads(json.dumps(values, default=str))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `key.sub=value` strings (values are YAML) to a nested dict; returns a new one."""
    import copy

    import yaml

    values = copy.deepcopy(values)
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{text}' is not an override; expected key.sub=value")
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"'{text}': {parent} is a value, not a group of keys")
            node = child
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError:
            raise ConfigError(f"'{text}': the value is not valid YAML") from None
        # YAML reads 007, 1_000, 1:30 and 2024-05-01 as something else; a field of text needs them
        # as they are, and a field of numbers reads text that is a number too.
        node[last] = value if _as_typed(value, raw.strip()) else raw.strip()
    return values


def _as_typed(value: Any, raw: str) -> bool:
    """Whether YAML left a scalar as it was typed; lists and mappings are its own affair."""
    if isinstance(value, date):
        return False
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return True
    return str(value) == raw
