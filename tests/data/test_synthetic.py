"""The stream against an independent, slow recomputation from the written files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kunlun.config import parse, read_yaml
from kunlun.data.synthetic import (
    CALENDAR_START,
    EVENT_TYPES,
    PRESETS,
    SyntheticConfig,
    generate,
    make_lab,
    synthesize,
    write_raw,
)
from kunlun.data.synthetic.measure import normalised_entropy, spectrum
from kunlun.data.synthetic.simulate import _build, simulate
from kunlun.data.synthetic.timeline import make_timelines
from kunlun.errors import ConfigError, DataError
from kunlun.features.schema import Schema
from tests.data import cpus

TINY = PRESETS["tiny"]
ROUND = replace(TINY, sequence_skills=36, seed=5)  # three rounds of the pattern: every S and G form
HOUR, SESSION = 3_600_000, 1_800_000


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


def columns(config: SyntheticConfig) -> dict[str, np.ndarray]:
    parts = [chunk.impressions() for chunk in generate(config)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "raw"
    write_raw(ROUND, out)
    return out


class SlowTruth:
    """p in float64 from Parquet rows alone, plus the world's tables and constants."""

    def __init__(self, folder: Path, config: SyntheticConfig) -> None:
        lab = make_lab(config)
        self.config, self.world, self.fitted = config, lab.world, lab.fitted
        self.events = pq.read_table(folder / "events.parquet").to_pylist()
        self.users = {u["user_id"]: u for u in pq.read_table(folder / "users.parquet").to_pylist()}
        items = pq.read_table(folder / "items.parquet").to_pylist()
        self.items = {i["item_id"]: i for i in items}
        self.x = {i["item_id"]: np.array([i[f"x{n}"] for n in range(4)]) for i in items}

    def logits(self, row: dict) -> tuple[float, float]:
        """Click and conversion logits of one row of impressions.parquet."""
        now, item = row["timestamp"], row["item_id"]
        past = [e for e in self.events if e["user_id"] == row["user_id"] and e["timestamp"] < now]
        pooled, conversion = self.pooled(row, past, now, item)
        total = self.fitted.bias + pooled
        for s in range(self.config.sequence_skills):
            total += self.fitted.sequence[s] * self.sequence(s, row, past, now, item)
        return total, self.fitted.conversion_bias + conversion

    def pooled(self, row: dict, past: list[dict], now: int, item: int) -> tuple[float, float]:
        k = self.world.pooled
        shown = sorted({(e["timestamp"], e["item_id"]) for e in past})  # one entry a step
        user = self.users[row["user_id"]]
        slot = (now // HOUR % 24 * 4 + row["device"]) * 8 + row["placement"]
        total = conversion = 0.0
        for i in range(self.config.skills):
            dense = sum(user[f"d{n}"] * k.by_dense[n, i] for n in range(4))
            q = k.by_slot[slot, i] + k.by_country[user["country"], i] + dense
            if k.kind[i] == 0:
                total += self.fitted.pooled[i] * k.b[item, i] * q
                continue
            tau = self.config.memory_hours[k.memory[i]] * HOUR
            up = n = 0.0
            for event in past:
                if event["event_type"] != EVENT_TYPES[k.event_type[i]]:
                    continue
                decay, gain = np.exp(-(now - event["timestamp"]) / tau), k.g[event["item_id"], i]
                if k.kind[i] == 3:
                    at = [time for time, _ in shown].index(event["timestamp"])
                    linked = at > 0 and shown[at][0] - shown[at - 1][0] <= SESSION
                    gain = gain * k.previous[shown[at - 1][1], i] if linked else 0.0
                up, n = up + decay * gain, n + decay
            state = np.tanh(float(self.fitted.state_scale[i]) * up / (1 + n))
            conversion += self.fitted.conversion[i] * state * (0.6 + k.b[item, i])
            mix = 0.6 + q if k.kind[i] == 2 else 1.0
            total += self.fitted.pooled[i] * k.b[item, i] * state * mix
        return total, conversion

    def sequence(self, s: int, row: dict, past: list[dict], now: int, item: int) -> float:
        k, kind = self.world.sequence, self.world.sequence.kind[s]

        def window(name: str) -> list[dict]:
            size = self.config.windows[EVENT_TYPES.index(name)]
            return [e for e in past if e["event_type"] == name][-size:]

        def weight(event: dict) -> float:
            return float(np.exp(-(now - event["timestamp"]) / (1000 * k.memory[s])))

        def match(event: dict) -> float:
            delta = self.x[item] - self.x[event["item_id"]]
            return weight(event) * float(np.exp(-delta @ k.quadratic[s] @ delta))

        def density(name: str) -> float:
            return sum(match(e) for e in window(name))

        own = window(EVENT_TYPES[k.event_type[s]])
        if kind == "C":
            own = [e for e in own if e["placement"] % 4 == row["placement"] % 4]
        if kind in "RC":
            value = sum(match(e) * k.g[e["item_id"], s] for e in own)
            return value / (0.3 + sum(match(e) for e in own))
        if kind == "A":
            near, all_ = sum(match(e) for e in own), sum(weight(e) for e in own)
            return (near / (1 + all_) - 0.3) * k.b[item, s]
        if kind == "P":
            click, shown = density("click"), density("impression") / 3
            return (click - shown) / (0.3 + click + shown)
        if kind == "X":
            return (density("click") * density("conversion")) ** 0.5
        level = ("category", "subcategory")[k.level[s]]
        same = [
            e for e in window("click") if self.items[e["item_id"]][level] == self.items[item][level]
        ]
        if kind == "G":
            if not same:
                return 0.0
            gap = (now - same[-1]["timestamp"]) / 600_000
            return np.sin(k.frequency[s] * np.log1p(gap) + k.phase[s])
        start = now
        for time in sorted({e["timestamp"] for e in past}, reverse=True):
            if start - time > SESSION:
                break
            start = time
        recent = sum(e["timestamp"] >= start for e in same)
        value = np.tanh(0.7 * recent - 0.35 * (len(same) - recent) - 0.2)
        return value * k.b[item, s] if k.modulated[s] else value


def test_probability_against_slow_recomputation_from_files(raw: Path) -> None:
    rows = pq.read_table(raw / "impressions.parquet")
    chosen = rows.take(np.random.default_rng(0).integers(0, len(rows), 120)).to_pylist()
    truth = SlowTruth(raw, ROUND)
    logits = np.array([truth.logits(row) for row in chosen])
    p = 1 / (1 + np.exp(-np.clip(logits, -10, 10)))
    np.testing.assert_allclose([row["p_click"] for row in chosen], p[:, 0], atol=1e-7)
    np.testing.assert_allclose([row["p_conversion"] for row in chosen], p[:, 1], atol=1e-7)
    assert p[:, 0].std() > 0.2


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_base_rate_spread_and_floor(share: float) -> None:
    data = columns(replace(TINY, users=800, sequence_share=share))
    p = data["p_click"].astype(np.float64)
    assert data["click"].mean() == pytest.approx(0.25, abs=0.02)
    assert np.log(p / (1 - p)).std() == pytest.approx(2.0, abs=0.15)
    floor = entropy(p).mean() / entropy(data["click"].mean())
    y = data["click"]
    observed = -np.where(y, np.log(p), np.log1p(-p)).mean() / entropy(y.mean())
    assert observed == pytest.approx(floor, abs=0.02)  # labels are drawn from p
    assert 0.6 < floor < 0.75


def test_log_is_complete_and_ordered(raw: Path) -> None:
    events = pq.read_table(raw / "events.parquet")
    shown = events.filter(pc.not_equal(events["event_type"].cast("string"), "conversion"))
    assert len(shown) == ROUND.users * ROUND.steps  # every step once: clicked or not
    user, time = shown["user_id"].to_numpy(), shown["timestamp"].to_numpy()
    same = user[1:] == user[:-1]
    assert (np.diff(time)[same] > 0).all()
    assert time.min() >= CALENDAR_START
    rows = pq.read_table(raw / "impressions.parquet")
    assert len(rows) == ROUND.samples == 200 * 30
    clicked = rows["click"].to_numpy() == 1
    assert (rows["conversion"].is_null().to_numpy() == ~clicked).all()
    key = set(zip(user.tolist(), time.tolist(), strict=True))
    own = set(zip(rows["user_id"].to_pylist(), rows["timestamp"].to_pylist(), strict=True))
    assert own < key


def test_schema_reads_the_written_columns(raw: Path) -> None:
    schema = parse(Schema, read_yaml(raw / "schema.yaml"), "schema.yaml")
    assert schema.tasks == ["click", "conversion"]
    assert schema.labels["conversion"].given == "click"
    present = {
        name
        for table in ("impressions", "users", "items")
        for name in pq.read_schema(raw / f"{table}.parquet").names
    }
    for name, feature in schema.features.items():
        assert (feature.column or name) in present
    for label in schema.labels.values():
        assert label.truth in present
    assert list(schema.events) == list(EVENT_TYPES)
    assert [e.max_len for e in schema.events.values()] == list(ROUND.history)


def test_split_times_give_80_10_10() -> None:
    config = replace(TINY, users=1500)
    time = columns(config)["timestamp"]
    valid, test = make_lab(config).split
    assert np.mean(time < valid) == pytest.approx(0.8, abs=0.04)
    assert np.mean((time >= valid) & (time < test)) == pytest.approx(0.1, abs=0.03)


def test_hidden_content_is_not_written(tmp_path: Path) -> None:
    write_raw(replace(TINY, users=5, content="hidden"), tmp_path / "raw")
    assert pq.read_schema(tmp_path / "raw" / "items.parquet").names == [
        "item_id",
        "category",
        "subcategory",
    ]
    schema = parse(Schema, read_yaml(tmp_path / "raw" / "schema.yaml"), "schema.yaml")
    assert "x0" not in schema.features


def test_same_configuration_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kunlun.data.synthetic.simulate.PILOT_IMPRESSIONS", 9000)
    small = replace(TINY, users=20, seed=8)
    for name in ("a", "b"):
        _build.cache_clear()
        write_raw(small, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    other = columns(replace(small, seed=9))["item_id"]
    assert not np.array_equal(columns(small)["item_id"], other)


DIGEST = """
import hashlib
from kunlun.data.synthetic import PRESETS, generate
outcomes = [chunk.outcome for chunk in generate(PRESETS["tiny"])]
bits = b"".join(o.p_click.tobytes() + o.p_conversion.tobytes() for o in outcomes)
print(hashlib.sha256(bits).hexdigest())
"""


def test_probabilities_are_the_same_on_every_cpu() -> None:
    """Studies go on where another machine stopped only if both make the same data."""
    assert len(cpus.outputs(DIGEST)) == 1


def test_chunks_are_independent_of_order_and_population(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kunlun.data.synthetic.config.MAX_CHUNK_USERS", 72)
    config = replace(TINY, users=100)
    assert config.chunks == 2
    whole = list(generate(config))
    (second,) = generate(config, [1])
    np.testing.assert_array_equal(whole[1].outcome.p_click, second.outcome.p_click)
    assert (whole[0].line.item[:28] != whole[1].line.item).mean() > 0.9
    (first,) = generate(replace(config, users=30))
    np.testing.assert_array_equal(whole[0].line.time[:30], first.line.time)
    np.testing.assert_allclose(whole[0].outcome.p_click[:30], first.outcome.p_click, atol=1e-7)
    np.testing.assert_array_equal(whole[0].outcome.click[:30], first.outcome.click)


def test_later_events_never_change_earlier_probabilities() -> None:
    lab = make_lab(TINY)
    line = make_timelines(lab.world.config, np.random.default_rng(3), 64)
    before = simulate(lab.world, lab.fitted, line)
    cut = 40
    item, draw = line.item.copy(), line.click_draw.copy()
    item[:, cut + 1 :] = item[::-1, cut + 1 :]
    draw[:, cut:] = 1 - draw[:, cut:]  # from the cut on, other labels
    changed = simulate(lab.world, lab.fitted, replace(line, item=item, click_draw=draw))
    np.testing.assert_array_equal(before.p_click[:, : cut + 1], changed.p_click[:, : cut + 1])
    assert (before.p_click[:, cut + 1 :] != changed.p_click[:, cut + 1 :]).mean() > 0.9


@pytest.mark.parametrize("write", [write_raw, synthesize])
def test_write_refuses_an_occupied_folder(
    write: Callable[[SyntheticConfig, Path], object], tmp_path: Path
) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(DataError, match="exists already; choose another"):
        write(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kunlun.data.synthetic.write._items", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_raw(replace(TINY, users=5), tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("items", 1000, "items is 1000; it must be a multiple of 128"),
        ("sequence_share", 0.95, "sequence_share is 0.95; expected 0 to 0.9"),
        ("burn_in", 60, "burn_in is 60; expected 0 to steps - 1"),
        ("users", 0, "users is 0; it must be at least 1"),
        ("latent", 1, "latent is 1; kernels need at least 2"),
        ("drift", 2.0, "drift is 2.0; expected 0 to 1"),
        ("days", 0.0, "days is 0.0; expected more than 0 and at most 3650"),
        ("days", math.nan, "days is nan; expected more than 0"),
        ("days", math.inf, "days is inf; expected more than 0"),
    ],
)
def test_impossible_configurations(key: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **{key: value})


def test_configuration_from_yaml_values() -> None:
    values = {**TINY.to_dict(), "windows": [20, 12, 6]}
    assert parse(SyntheticConfig, values, "x.yaml") == TINY
    assert TINY.with_samples(1000).samples >= 1000


def test_knowing_more_skills_lowers_the_entropy() -> None:
    known = spectrum(replace(TINY, skills=32, sequence_skills=24), [0, 1, 2, 4, 8, 16, 32], 300)
    values = list(known.values())
    assert values[0] == pytest.approx(1.0, abs=1e-6)
    assert all(later < earlier - 0.003 for earlier, later in itertools.pairwise(values[:-1]))
    assert values[-1] < values[-2] < 0.75


@pytest.mark.parametrize(("preset", "floor"), [("tiny", 0.7096), ("demo", 0.6705)])
def test_floor_of_preset(preset: str, floor: float) -> None:
    """Another value means another world: results on the old one no longer compare."""
    p = columns(PRESETS[preset])["p_click"]
    assert normalised_entropy(p) == pytest.approx(floor, abs=0.002)
    assert p.mean() == pytest.approx(0.25, abs=0.01)


def test_synthesize_writes_a_dataset_with_its_floor(tmp_path: Path) -> None:
    manifest = synthesize(TINY, tmp_path / "data")
    assert json.loads((tmp_path / "data" / "manifest.json").read_text()) == json.loads(
        json.dumps(manifest)
    )
    assert manifest["synthetic"]["config"] == TINY.to_dict()
    data = columns(TINY)
    floor = entropy(data["p_click"].astype(float)).mean() / entropy(data["click"].mean())
    assert manifest["synthetic"]["ne_floor"] == pytest.approx(floor, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
