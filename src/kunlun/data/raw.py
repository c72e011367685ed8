"""Raw tables: Parquet or CSV files as Arrow columns, and errors that name file, column and row.

Only the columns that the schema asks for are read. Row numbers in errors count from 0 within the
file, without a CSV header.
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from kunlun.data.times import TimeForm
from kunlun.data.values import BadValue
from kunlun.errors import DataError, SchemaError
from kunlun.features.schema import Table

PARQUET, CSV = (".parquet", ".pq"), (".csv", ".csv.gz")
NULLS = ["", "null", "NULL", "nan", "NaN"]  # of CSV; not "NA", which is Namibia's country code


class RawTable:
    """One table of the schema.

    Args:
        table: files and the names of its id and time columns.
        root: folder that relative files start from.
        where: dotted key in the schema, for messages.
    Raises: DataError for missing or unreadable files; SchemaError for a column that is not there.
    """

    def __init__(self, table: Table, root: Path, where: str) -> None:
        self.table, self.where, self.root = table, where, root
        self.paths = _expand(table.files, root, where)
        self.names = [_names(path) for path in self.paths]
        self._wanted: dict[str, bool] = {}  # column -> whether it holds keys
        self._data = pa.table({})
        self._starts = np.zeros(1, np.int64)  # first row of each file, then the total

    @property
    def rows(self) -> int:
        """Rows of all files; 0 before `load`."""
        return int(self._starts[-1])

    @property
    def form(self) -> TimeForm:
        """How its times are written."""
        return TimeForm(self.table.time_unit, self.table.utc_offset or 0.0)

    def has(self, name: str) -> bool:
        """Whether every file has that column."""
        return all(name in names for names in self.names)

    def want(self, name: str, where: str, *, keys: bool = False) -> None:
        """Ask for a column before `load`; `where` is the schema key that names it.

        keys: its values are ids, so a CSV must not guess their type from how they look.
        """
        for path, names in zip(self.paths, self.names, strict=True):
            if name not in names:
                hint = suggest(name, names)
                raise SchemaError(f"{where}: column '{name}' is not in {path}; {hint}")
            if names.count(name) > 1:
                raise SchemaError(
                    f"{where}: column '{name}' occurs {names.count(name)} times in {path}; "
                    "rename or drop all but one"
                )
        self._wanted[name] = keys or self._wanted.get(name, False)

    def load(self) -> None:
        """Read the wanted columns of all files."""
        parts = [_read(path, self._wanted) for path in self.paths]
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        if not self.rows:
            raise DataError(f"no rows; {self.where} needs at least one", file=self.paths[0])
        try:
            self._data = pa.concat_tables(parts, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            names = f"{self.paths[0]} and {len(self.paths) - 1} more"
            raise DataError(f"columns of different types: {_line(error)}", file=names) from None

    def column(self, name: str) -> pa.Array:
        """A wanted column over all files, one array of `rows` values."""
        column = self._data.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # older Arrow keeps an empty one chunked
            column = pa.concat_arrays(column.chunks)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column

    def inputs(self) -> dict[str, Path]:
        """Files by their path from the root, or by name if they lie elsewhere."""
        return {
            str(p.relative_to(self.root)) if p.is_relative_to(self.root) else p.name: p
            for p in self.paths
        }

    def locate(self, row: int) -> tuple[Path, int]:
        """Row of the whole table -> file and row in it."""
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.paths[index], row - int(self._starts[index])

    @contextmanager
    def blame(self, column: str, locate: Callable[[int], int] | None = None) -> Iterator[None]:
        """Complete a BadValue raised inside with file, column and source row.

        locate: row as the inner code counts -> row of this table, or -1 if it has none.
        """
        try:
            yield
        except BadValue as error:
            row = error.row
            if row is not None and locate is not None:
                row = locate(row)
            file = self.paths[0]
            if row is not None and row >= 0:
                file, row = self.locate(row)
            else:
                row = None
            raise DataError(error.reason, file=file, column=column, row=row) from None
        except pa.ArrowException as error:
            reason = f"cannot be read ({_line(error)}); expected another type"
            raise DataError(reason, file=self.paths[0], column=column) from None


def suggest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"


def _expand(files: str | list[str], root: Path, where: str) -> list[Path]:
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str) else files:
        path = root / pattern
        if glob.has_magic(pattern):
            matches = [Path(p) for p in sorted(glob.glob(str(path)))]
        else:
            matches = [path] if path.is_file() else []
        if not matches:
            raise DataError(
                f"no such file ({where}.files); paths start from {root}: "
                "move the schema next to the data or pass --root",
                file=path,
            )
        found += matches
    if not found:
        raise SchemaError(f"{where}.files: the list is empty; name at least one file")
    for path in found:
        if not path.name.endswith(PARQUET + CSV):
            raise DataError(f"unknown format; expected {', '.join(PARQUET + CSV)}", file=path)
    return found


def _names(path: Path) -> list[str]:
    with _readable(path):
        if path.name.endswith(PARQUET):
            return list(pq.read_schema(path).names)
        with csv.open_csv(path, parse_options=csv.ParseOptions()) as reader:
            return list(reader.schema.names)


def _read(path: Path, columns: dict[str, bool]) -> pa.Table:
    with _readable(path):
        if path.name.endswith(PARQUET):
            with pq.ParquetFile(path) as file:
                return file.read(list(columns))
        convert = csv.ConvertOptions(
            include_columns=list(columns),
            column_types={name: pa.large_string() for name, keys in columns.items() if keys},
            null_values=NULLS,
            strings_can_be_null=True,
        )
        # One block, so that the type of a number or time is inferred from every row; a late letter
        # makes the column text, and the error then names its row.
        size = max(path.stat().st_size * (20 if path.suffix == ".gz" else 1), 1 << 20)
        read = csv.ReadOptions(block_size=min(size + 1, 2**31 - 1), use_threads=False)
        try:
            table = csv.read_csv(path, read_options=read, convert_options=convert)
        except pa.ArrowInvalid as error:
            found = re.search(r"CSV column #(\d+): .*invalid UTF8", str(error))
            if found is None:
                raise
            raise _not_utf8(path, _names(path)[int(found[1])]) from None
        for field in table.schema:
            if pa.types.is_binary(field.type):  # what Arrow takes other encodings for
                raise _not_utf8(path, field.name)
        return table


def _not_utf8(path: Path, column: str) -> DataError:
    return DataError("is not UTF-8 text; save the file as UTF-8", file=path, column=column)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn Arrow's failures into one line."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read ({_line(error)}); is it truncated, or of another format?", file=path
        ) from None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")[:200] if str(error) else repr(error)
