"""Check a schema against its logs without writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kunlun.data.prepare import assemble


def validate(
    schema_path: Path, root: Path | None = None, like: Path | None = None
) -> dict[str, Any]:
    """Run every check of `prepare`, down to fitting and encoding; returns the manifest it would
    write.

    root: folder that relative files start from; default: the schema's. like: as in `prepare`.
    Raises: SchemaError, ConfigError or DataError, one line naming file, column and row.
    """
    return assemble(schema_path, like=like, root=root).manifest
