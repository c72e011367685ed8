"""schema.yaml as it is written: a schema may extend another one."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from kunlun.config import parse, read_yaml
from kunlun.errors import SchemaError
from kunlun.features.schema import Schema


def load_schema(path: Path) -> Schema:
    """A schema.yaml, on top of the one it `extends`. Raises ConfigError or SchemaError, one line.

    Mappings are merged key by key, in the order of the extended file; anything else is replaced.
    """
    body = _read(path, [])
    split, labels = body.get("split"), body.get("labels")
    if isinstance(split, dict):  # YAML reads an unquoted time as an object
        split.update({k: v.isoformat() for k, v in split.items() if isinstance(v, date)})
    if isinstance(labels, dict):  # `click:` alone is a label without options
        labels.update({k: {} for k, v in labels.items() if v is None})
    return parse(Schema, body, str(path))


def _read(path: Path, above: list[Path]) -> dict[str, Any]:
    body = read_yaml(path)
    if "extends" not in body:
        return body
    name = body.pop("extends")
    if not isinstance(name, str):
        raise SchemaError(f"{path}: extends is {name!r}, expected the path of one schema")
    above = [*above, path.resolve()]
    base = path.parent / name
    if base.resolve() in above:
        raise SchemaError(f"{path}: extends {name}, which extends it in turn; drop one of them")
    return _merged(_read(base, above), body)


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in more.items():
        old = found.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        found[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return found
