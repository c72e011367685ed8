"""Reports on disk, and the length of their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kunlun.errors import ConfigError


def write_report(report: dict[str, Any], file: Path) -> None:
    """Makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


def read_report(file: Path, key: str) -> dict[str, Any]:
    """A report that has `key`. Raises ConfigError for another file."""
    try:
        report = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; kunlun bench --out DIR writes one") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON ({error})") from None
    if not isinstance(report, dict) or key not in report:
        raise ConfigError(f"{file}: not a report of this verb, it has no '{key}'")
    return report


def rounded(value: Any) -> Any:
    """The same nested value, floats to four significant digits: no measurement here is better."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
