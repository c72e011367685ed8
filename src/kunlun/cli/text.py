"""Plain text for people: nested values as an outline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kunlun.report.table import table


def outline(value: Mapping[str, Any], indent: int = 0) -> str:
    """A nested mapping, one key a line; a short inner mapping of plain values stays on
    one, a list of mappings is a table."""
    pad, lines = " " * indent, []
    width = max((len(str(key)) for key in value), default=0)
    for key, entry in value.items():
        if isinstance(entry, Mapping) and (indent == 0 or not _short(entry)):
            lines += [f"{pad}{key}", outline(entry, indent + 2)]
        elif isinstance(entry, list) and entry and isinstance(entry[0], Mapping):
            rows = [[plain(row.get(name)) for name in entry[0]] for row in entry]
            text = table(list(entry[0]), rows)
            lines += [f"{pad}{key}", *(f"{pad}  {line}" for line in text.splitlines())]
        else:
            lines.append(f"{pad}{key:{width}}  {plain(entry)}")
    return "\n".join(lines)


def _short(value: Mapping[str, Any]) -> bool:
    nested = any(isinstance(entry, Mapping) for entry in value.values())
    return not nested and len(plain(value)) <= 80


def plain(value: Any) -> str:
    """One value on one line: 1,234   0.7512   2.10e+09   a 3, b 4   - for null."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.2e}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return " ".join(plain(entry) for entry in value)
    return str(value)
