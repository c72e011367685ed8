"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kunlun.errors import DataError


def check_free(out: Path) -> None:
    """Raise DataError if `out` exists and is not an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError("exists already; choose another --out or remove it first", file=out)


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to it when the block ends without an exception.

    Everything is fsynced before the rename; on any exception, Ctrl-C included, it is removed.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in [*files, ""]:
                _sync(Path(folder) / name)
        os.replace(temporary, out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
