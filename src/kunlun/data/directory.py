"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kunlun.errors import DataError


def check_place(out: Path) -> None:
    """Raise DataError if `out` lies inside a file."""
    for parent in out.parents:
        if parent.exists():
            if not parent.is_dir():
                raise DataError(f"{parent} is a file, expected a folder", file=out)
            return


def check_free(out: Path) -> None:
    """Raise DataError if `out` cannot become a new folder: it exists and is not an empty one, is
    the current folder, or lies inside a file."""
    check_place(out)
    if out.exists() and out.samefile(Path.cwd()):
        raise DataError("is the current folder; name a new one", file=out)
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
