"""Keys -> ids: a vocabulary fitted on train, or a fixed hash that needs no fitting.

Ids: 0 = missing, 1 = out of vocabulary, 2.. = values. Keys are canonical (values.canonical).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kunlun.data.values import Int32, Int64, factorise
from kunlun.features.schema import FIRST_VALUE, MISSING, UNKNOWN

UInt64 = NDArray[np.uint64]


def splitmix64(values: Int64) -> UInt64:
    """64-bit hash of int64 [n]: the finaliser of SplitMix64 (Steele et al. 2014) on x + its gamma.

    z = x + 0x9E3779B97F4A7C15; z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB; z ^ z >> 31, all modulo 2^64.
    """
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash64(keys: pa.Array) -> UInt64:
    """The fixed hash of `hash_buckets` and `group`: int64 keys by splitmix64, text by the first 8
    bytes of BLAKE2b (digest size 8) of its UTF-8, little-endian. Null hashes to that of 0 or "".
    """
    if pa.types.is_int64(keys.type):
        return splitmix64(pc.fill_null(keys, 0).to_numpy(zero_copy_only=False))
    codes, distinct = factorise(pc.fill_null(keys, ""))
    hashes = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        for text in distinct.to_pylist()
    ]
    return np.array(hashes, np.uint64)[codes]


@dataclass(frozen=True)
class Counts:
    """How often distinct canonical keys occur; what a vocabulary is fitted from."""

    keys: pa.Array
    counts: Int64

    @staticmethod
    def of(keys: pa.Array, weights: Int64 | None = None) -> Counts:
        """Occurrences of non-null keys; weights int64 [n] count an element several times or not."""
        codes, distinct = factorise(keys)
        known = codes >= 0
        weight = None if weights is None else weights[known]
        total = np.bincount(codes[known], weight, minlength=len(distinct))
        return Counts(distinct, total.astype(np.int64))


@dataclass(frozen=True)
class Vocabulary:
    """Values in the order of their ids; int64 or large_string, without null."""

    values: pa.Array

    @property
    def size(self) -> int:
        """Ids including the two reserved ones."""
        return len(self.values) + FIRST_VALUE

    @staticmethod
    def fit(parts: list[Counts], min_count: int) -> Vocabulary:
        """Values that occur at least min_count times over all parts, most frequent first.

        Ties are ordered by value, so the same logs give the same ids. Integers and text in one
        vocabulary become text.
        """
        text = any(pa.types.is_large_string(p.keys.type) for p in parts if len(p.keys))
        kind = pa.large_string() if text else pa.int64()
        keys = [(p.keys if len(p.keys) else pa.nulls(0, kind)).cast(kind) for p in parts]
        table = pa.table(
            {
                "value": pa.chunked_array(keys, kind),
                "n": pa.chunked_array([pa.array(p.counts) for p in parts], pa.int64()),
            }
        )
        table = table.group_by("value", use_threads=False).aggregate([("n", "sum")])
        table = table.filter(pc.greater_equal(table["n_sum"], min_count))
        table = table.sort_by([("n_sum", "descending"), ("value", "ascending")])
        return Vocabulary(_flat(table["value"]))

    def encode(self, keys: pa.Array) -> Int32:
        """Canonical keys [n] -> int32 ids [n]."""
        codes, distinct = factorise(keys)
        found = pc.index_in(_align(distinct, self.values.type), value_set=self.values)
        ids = pc.fill_null(found, UNKNOWN - FIRST_VALUE).to_numpy(zero_copy_only=False)
        return _lookup(ids.astype(np.int32) + np.int32(FIRST_VALUE), codes)


@dataclass(frozen=True)
class Hashing:
    """id = 2 + hash64(key) mod buckets; `text` says whether keys are hashed as text or integers."""

    buckets: int
    text: bool

    @property
    def size(self) -> int:
        """Ids including the two reserved ones."""
        return self.buckets + FIRST_VALUE

    def encode(self, keys: pa.Array) -> Int32:
        """Canonical keys [n] -> int32 ids [n]; text where integers were hashed gets 1."""
        codes, distinct = factorise(keys)
        aligned = _align(distinct, pa.large_string() if self.text else pa.int64())
        ids = (hash64(aligned) % np.uint64(self.buckets)).astype(np.int32) + np.int32(FIRST_VALUE)
        ids[aligned.is_null().to_numpy(zero_copy_only=False)] = UNKNOWN
        return _lookup(ids, codes)


def _lookup(ids: Int32, codes: Int32) -> Int32:
    """ids of distinct keys -> ids of all; code -1 (null) is the last entry."""
    found: Int32 = np.append(ids, np.int32(MISSING))[codes]
    return found


def _align(distinct: pa.Array, kind: pa.DataType) -> pa.Array:
    """Distinct keys in the type a vocabulary was fitted with; what does not fit becomes null."""
    if distinct.type == kind or pa.types.is_large_string(kind):
        return distinct.cast(kind)
    return pa.array([_integer(text) for text in distinct.to_pylist()], pa.int64())


def _integer(text: str) -> int | None:
    """Only the spelling that int64 itself has: '007' is another key than 7."""
    try:
        value = int(text)
    except ValueError:
        return None
    return value if str(value) == text and -(2**63) <= value < 2**63 else None


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)
