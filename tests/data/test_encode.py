"""Vocabularies, hashes and transforms: the one path that training and serving share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kunlun.data.encode import Encoders, clock
from kunlun.data.numeric import Buckets, Scaler
from kunlun.data.times import times
from kunlun.data.values import (
    NO_TIME,
    BadValue,
    Ragged,
    canonical,
    first,
    length,
    lists,
    numbers,
)
from kunlun.data.vocabulary import Counts, Hashing, Vocabulary, hash64, splitmix64
from kunlun.features.schema import Feature

CANONICAL = [
    (pa.array([3, None, 1], pa.int32()), [3, None, 1]),
    (pa.array([3.0, None, float("nan")]), [3, None, None]),
    (pa.array([0.5, 3.0]), ["0.5", "3"]),
    (pa.array([float("inf"), 1.0]), ["inf", "1"]),
    (pa.array([True, False, None]), [1, 0, None]),
    (pa.array([2**64 - 1, 1], pa.uint64()), ["18446744073709551615", "1"]),
    (pa.array(["a", "", None]), ["a", None, None]),
    (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
    (pa.nulls(2), [None, None]),
]


@pytest.mark.parametrize(
    ("array", "expected"), CANONICAL, ids=lambda v: str(getattr(v, "type", ""))
)
def test_canonical_keys(array: pa.Array, expected: list[Any]) -> None:
    keys = canonical(array)
    assert keys.to_pylist() == expected
    assert keys.type in (pa.int64(), pa.large_string())


def test_vocabulary_orders_by_count_then_value() -> None:
    parts = [Counts.of(pa.array([5, 5, 9, 1, None, 2])), Counts.of(pa.array([9, 1, 2, 2]))]
    vocabulary = Vocabulary.fit(parts, min_count=2)
    assert vocabulary.values.to_pylist() == [2, 1, 5, 9]  # 3 times, then ties by value
    assert vocabulary.encode(pa.array([2, 9, 77, None])).tolist() == [2, 5, 1, 0]
    assert vocabulary.size == 6


def test_vocabulary_counts_weights_only() -> None:
    counts = Counts.of(
        pa.array(["a", "b", "a", "c"]).cast(pa.large_string()), np.array([2, 0, 1, 1])
    )
    assert Vocabulary.fit([counts], 1).values.to_pylist() == ["a", "c"]


def test_vocabulary_mixes_integers_and_text() -> None:
    text = pa.array(["7", "x"], pa.large_string())
    vocabulary = Vocabulary.fit([Counts.of(pa.array([7])), Counts.of(text)], 1)
    assert vocabulary.encode(pa.array([7])).tolist() == vocabulary.encode(text[:1]).tolist() == [2]
    whole = Vocabulary.fit([Counts.of(pa.array([7]))], 1)
    spelt = pa.array(["7", "07", "x", None], pa.large_string())
    assert whole.encode(spelt).tolist() == [2, 1, 1, 0]


def test_vocabulary_of_nothing() -> None:
    assert Vocabulary.fit([Counts.of(pa.nulls(3, pa.int64()))], 1).encode(
        pa.array([1, None])
    ).tolist() == [1, 0]


def test_hash_known_answers() -> None:
    """The first outputs of SplitMix64 from seeds 0 and 1, and BLAKE2b-8 of text."""
    found = splitmix64(np.array([0, 1, -1]))
    assert [hex(v) for v in found[:2]] == ["0xe220a8397b1dcdaf", "0x910a2dec89025cc1"]
    import hashlib

    text = hash64(pa.array(["kunlun", None, ""], pa.large_string()))
    expected = hashlib.blake2b(b"kunlun", digest_size=8).digest()
    assert int(text[0]).to_bytes(8, "little") == expected
    assert text[1] == text[2]


def test_hashing_is_fixed_and_spread() -> None:
    ids = Hashing(100, text=False).encode(pa.array([*range(50_000), None]))
    assert ids[-1] == 0
    assert (ids[:-1].min(), ids[:-1].max()) == (2, 101)
    counts = np.bincount(ids[:-1], minlength=102)[2:]
    assert counts.std() < 2 * np.sqrt(500)
    assert Hashing(100, text=True).encode(pa.array([7])) == Hashing(100, text=True).encode(
        pa.array(["7"], pa.large_string())
    )
    spelt = pa.array(["7", "x"], pa.large_string())
    assert Hashing(100, text=False).encode(spelt).tolist() == [ids[7], 1]


def test_scaler_standardises() -> None:
    x = np.array([1.0, 3.0, np.nan, 5.0])
    scaler = Scaler.fit("standardise", x)
    assert scaler.encode(x).tolist() == pytest.approx([-1.2247449, 0, 0, 1.2247449])
    assert Scaler.fit("standardise", np.full(3, 2.0)).encode(np.full(1, 4.0)).tolist() == [2.0]


def test_scaler_log1p_keeps_the_sign() -> None:
    x = np.array([-np.e + 1, 0.0, np.e - 1, np.inf])
    assert Scaler.fit("log1p", x).encode(x).tolist() == pytest.approx([-1, 0, 1, 0])


def test_quantile_against_the_empirical_distribution() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros(500), rng.lognormal(size=500)])
    scaler = Scaler.fit("quantile", x)
    assert scaler.encode(np.array([0.0, 1e9, -1e9])) == pytest.approx([-0.5, 1, -0.5], abs=0.01)
    found = scaler.encode(np.sort(x[500:]))
    assert found == pytest.approx(np.linspace(0, 1, 500), abs=0.01)


def test_buckets_are_equally_filled_and_have_missing() -> None:
    x = np.arange(1000.0)
    buckets = Buckets.fit(4, x)
    assert np.bincount(buckets.encode(x)).tolist() == [0, 0, 250, 250, 250, 250]
    assert buckets.encode(np.array([np.nan, -np.inf, -5, 5000])).tolist() == [0, 0, 2, 5]
    assert Buckets.fit(4, np.array([np.nan])).encode(np.array([1.0])).tolist() == [2]


def test_numbers_parse_text_and_name_the_row() -> None:
    assert numbers(pa.array([" 1.5", "2", None])).tolist() == pytest.approx(
        [1.5, 2, np.nan], nan_ok=True
    )
    with pytest.raises(BadValue, match="row 1: found text 'x'"):
        numbers(pa.array(["1", "x"]))


TIMES = [
    (pa.array([1_700_000_000]), "s", 0, 1_700_000_000_000),
    (pa.array([1_700_000_000.5]), "s", 0, 1_700_000_000_500),
    (pa.array([1_700_000_000_000_999]), "us", 0, 1_700_000_000_000),
    (pa.array(["2023-11-14"]), "ms", 0, 1_699_920_000_000),
    (pa.array(["2023-11-14"]), "ms", 8, 1_699_920_000_000 - 8 * 3_600_000),
    (pa.array(["2023-11-14T00:00:00+08:00"]), "ms", 3, 1_699_920_000_000 - 8 * 3_600_000),
    (pa.array(["2023-11-14 00:00:01.5"]), "ms", 0, 1_699_920_001_500),
    (pa.array(["2023-11-14"]).cast(pa.date32()), "ms", 8, 1_699_920_000_000 - 8 * 3_600_000),
    (pa.array([1_700_000_000_000_000_000]).cast(pa.timestamp("ns")), "s", 0, 1_700_000_000_000),
    (pa.array([1_700_000_000]).cast(pa.timestamp("s", "UTC")), "ms", 5, 1_700_000_000_000),
    (pa.array([None], pa.int64()), "ms", 0, NO_TIME),
    (pa.array([""]), "ms", 8, NO_TIME),
]


@pytest.mark.parametrize(("array", "unit", "offset", "expected"), TIMES)
def test_times(array: pa.Array, unit: Any, offset: float, expected: int) -> None:
    assert times(array, unit, offset).tolist() == [expected]


def test_lists_first_and_length() -> None:
    text = pa.array(["x, y", None, "", "z"])
    values, offsets = lists(text, ",")
    assert (values.to_pylist(), offsets.tolist()) == (["x", "y", "z"], [0, 2, 2, 2, 3])
    assert first(text, ",").to_pylist() == ["x", None, None, "z"]
    assert length(text, ",").tolist() == pytest.approx([2, np.nan, np.nan, 1], nan_ok=True)
    array = pa.array([[1, 2], None, [], [None, 3]])
    assert first(array, None).to_pylist() == [1, None, None, None]
    assert length(array, None).tolist() == pytest.approx([2, np.nan, 0, 2], nan_ok=True)
    sliced = array.slice(1)
    assert lists(sliced, None)[1].tolist() == [0, 0, 0, 2]
    assert lists(sliced, None)[0].to_pylist() == [None, 3]


def test_hour_and_weekday() -> None:
    hour = Feature(role="context", kind="timestamp", part="hour", utc_offset=8)
    weekday = Feature(role="context", kind="timestamp", part="weekday", utc_offset=8)
    at = np.array([1_651_507_200_000, NO_TIME])  # Tuesday 3 May 2022, 00:00 in Beijing
    assert clock(hour, at).tolist() == [2, 0]
    assert clock(weekday, at).tolist() == [3, 0]


def some_encoders() -> Encoders:
    counts = Counts.of(pa.array(["a/b", "c"], pa.large_string()))
    return Encoders(
        tables={"a/b": Vocabulary.fit([counts], 1), "h": Hashing(10, True)},
        numbers={"x": Scaler.fit("standardise", np.arange(5.0)), "v/x": Buckets([0.1, 0.3])},
        priors={"c": 0.1},
    )


def test_save_and_load(tmp_path: Path) -> None:
    some_encoders().save(tmp_path)
    assert Encoders.load(tmp_path) == some_encoders()


def test_request_values_are_encoded_like_logs() -> None:
    """Serving hands over plain lists of a request; the same call encodes them."""
    encoders = some_encoders()
    tags = Feature(role="item", kind="multi", table="a/b", max_len=2)
    found = encoders.encode("tags", tags, pa.array([["a/b", None, "zz", "c"], None]))["tags"]
    assert isinstance(found, Ragged)
    assert (found.values.tolist(), found.offsets.tolist()) == ([1, 3], [0, 2, 2])
    x = Feature(role="user", kind="numeric", missing="token")
    both = encoders.encode("x", x, pa.array([2, None]))
    assert {k: v.tolist() for k, v in both.items() if not isinstance(v, Ragged)} == {
        "x": [0.0, 0.0],
        "x.missing": [0.0, 1.0],
    }
    filled = Feature(role="user", kind="numeric", missing="value", fill=2.0)
    assert (
        encoders.encode("x", filled, pa.nulls(1))["x"]
        == encoders.encode("x", filled, pa.array([2]))["x"]
    )
