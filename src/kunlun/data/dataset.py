"""A dataset directory, opened: attributes in memory, events memory-mapped, samples on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kunlun.config import parse, read_yaml
from kunlun.data import event_store
from kunlun.data.labels import SPLITS
from kunlun.data.values import Int64, Ragged
from kunlun.errors import ConfigError, DataError
from kunlun.features.schema import Schema

Columns = dict[str, NDArray[Any] | Ragged]


class Chunk(NamedTuple):
    """One row group of a split."""

    file: int
    group: int
    rows: int


class Dataset:
    """What `kunlun data prepare` wrote.

    schema: resolved, with sizes. manifest: counts, rates, histories, inputs (plain values).
    Pickles as its path, so that worker processes open it themselves.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / "manifest.json").is_file():
            raise DataError(
                "is not a dataset directory (no manifest.json); make one with "
                "`kunlun data prepare SCHEMA --out DIR`",
                file=path,
            )
        try:
            self.manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        except ValueError:
            raise DataError("is torn; prepare again", file=self.path / "manifest.json") from None
        schema = self.path / "schema.yaml"
        if not schema.is_file():
            raise ConfigError(f"{schema}: no such file; the dataset directory is incomplete")
        self.schema: Schema = parse(Schema, read_yaml(schema), str(schema))

    @staticmethod
    def open(path: str | Path) -> Dataset:
        """Open a directory. Raises DataError if it is none, or torn."""
        return Dataset(Path(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.path,)

    def rows(self, split: str) -> int:
        """Number of samples of a split."""
        return sum(chunk.rows for chunk in self.chunks(split))

    def column(self, split: str, name: str) -> NDArray[Any]:
        """One stored column of a split in sample order: row, time, user, label.NAME, truth.NAME,
        weight, group, cut_TYPE or feature.NAME (not multi). Raises DataError if there is none."""
        parts = []
        for index in range(len(self.files(split))):
            found = self._read(split, index, None, [name])[name]
            assert isinstance(found, np.ndarray)
            parts.append(found)
        return np.concatenate(parts) if parts else np.zeros(0)

    def files(self, split: str) -> list[Path]:
        """Parquet files of a split, in sample order."""
        if split not in SPLITS:
            raise DataError(f"'{split}' is not a split; expected {', '.join(SPLITS)}")
        found = sorted((self.path / "samples" / split).glob("part-*.parquet"))
        expected = self.manifest["splits"][split]["rows"]
        if not found and expected:
            raise DataError(
                f"holds no samples, {expected} were written; prepare again",
                file=self.path / "samples" / split,
            )
        return found

    def chunks(self, split: str) -> list[Chunk]:
        """Row groups of a split, in sample order."""
        if split not in self._chunks:
            found = []
            for index, path in enumerate(self.files(split)):
                with _torn(path):
                    meta = pq.read_metadata(path)
                found += [
                    Chunk(index, g, meta.row_group(g).num_rows) for g in range(meta.num_row_groups)
                ]
            self._chunks[split] = found
        return self._chunks[split]

    def read(self, split: str, chunks: Sequence[Chunk], names: list[str]) -> Columns:
        """Columns of some row groups, one after another in the order given."""
        parts = [self._read(split, c.file, c.group, names) for c in chunks]
        return {name: concat([part[name] for part in parts]) for name in names}

    def _read(self, split: str, file: int, group: int | None, names: list[str]) -> Columns:
        path = self.files(split)[file]
        # One thread and no read-ahead pool: safe after fork, and the loader has its own workers.
        with _torn(path), pq.ParquetFile(path, memory_map=True, pre_buffer=False) as reader:
            for name in names:
                if name not in reader.schema_arrow.names:
                    raise DataError(
                        f"no such column; it has {', '.join(reader.schema_arrow.names)}",
                        file=path,
                        column=name,
                    )
            if group is None:
                table = reader.read(names, use_threads=False)
            else:
                table = reader.read_row_group(group, names, use_threads=False)
        return {name: to_numpy(table[name]) for name in names}

    @cached_property
    def _chunks(self) -> dict[str, list[Chunk]]:
        return {}

    @cached_property
    def users(self) -> Columns:
        """Encoded user attributes by input name; ids stay on disk (see ids)."""
        return self._attributes("users")

    @cached_property
    def items(self) -> Columns:
        """Encoded item attributes by input name."""
        return self._attributes("items")

    def ids(self, kind: str) -> pa.Array:
        """Raw ids of "users" or "items" in row order."""
        path = self.path / f"{kind}.parquet"
        with _torn(path):
            return pq.read_table(path, columns=["id"])["id"].combine_chunks()

    def _attributes(self, kind: str) -> Columns:
        path = self.path / f"{kind}.parquet"
        with _torn(path):
            table = pq.read_table(path, use_threads=False, pre_buffer=False)
        return {
            name.removeprefix("feature."): to_numpy(table[name])
            for name in table.column_names
            if name != "id"
        }

    def events(self, kind: str) -> dict[str, NDArray[Any]]:
        """Memory-mapped columns of an event type: time, item, feature.NAME; each [n]."""
        return event_store.open_mapped(self.path / "events" / f"{kind}.arrow")

    def offsets(self, kind: str) -> Int64:
        """int64 [users + 1] into the events of a type."""
        found = event_store.open_mapped(self.path / "events" / f"{kind}.offsets.arrow")
        return found["offset"].astype(np.int64, copy=False)


def to_numpy(column: pa.ChunkedArray) -> NDArray[Any] | Ragged:
    """An Arrow column without nulls as numpy; lists as a Ragged."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.nulls(0, array.type)
    if pa.types.is_large_list(array.type) or pa.types.is_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        return Ragged(array.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])
    found: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return found


def concat(parts: list[NDArray[Any] | Ragged]) -> NDArray[Any] | Ragged:
    """Columns one after another."""
    if len(parts) == 1:
        return parts[0]
    ragged = [p for p in parts if isinstance(p, Ragged)]
    if not ragged:
        return np.concatenate(parts)
    lengths = np.concatenate([np.diff(p.offsets) for p in ragged])
    return Ragged(
        np.concatenate([p.values for p in ragged]), np.concatenate([[0], np.cumsum(lengths)])
    )


@contextmanager
def _torn(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error) else "torn"
        raise DataError(
            f"cannot be read ({reason}); it is missing or truncated: prepare again", file=path
        ) from None
