"""From timelines to labels: the loop over steps, the pilot, and the stream of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from kunlun.data.synthetic import calibration as calibrate
from kunlun.data.synthetic.calibration import Calibration
from kunlun.data.synthetic.config import SyntheticConfig
from kunlun.data.synthetic.pooled import PooledState, PooledTables
from kunlun.data.synthetic.sequence import SequenceState, SequenceTables
from kunlun.data.synthetic.timeline import Timelines, make_timelines
from kunlun.data.synthetic.world import (
    CLICK,
    CONVERSION,
    EVENT_TYPES,
    F32,
    F64,
    IMPRESSION,
    Array,
    World,
    make_world,
)

PILOT_IMPRESSIONS = 90_000
# (part of the pilot's users, damping) of each iteration: rough first, then all of them
PILOT_ROUNDS = ((0.25, 1.0), (0.25, 1.0), (0.25, 0.7), (1.0, 0.7), (1.0, 0.7), (1.0, 0.5))
LOGIT_CAP = 10.0  # keeps p inside (0, 1) in float32; rare


@dataclass(frozen=True)
class Outcome:
    """Labels of timelines [U, T]; p is the exact probability given everything visible before."""

    p_click: F32
    p_conversion: F32  # given a click
    click: Array  # bool
    conversion: Array  # bool; only where clicked


class Record:
    """What the pilot and analyses look at: the labelled steps [U, S] of a simulation."""

    def __init__(self, world: World, users: int) -> None:
        shape = (users, world.config.steps - world.config.burn_in)
        skills, sequence = len(world.pooled.weight), len(world.sequence.weight)
        self.pooled: F64 = np.zeros((*shape, skills))  # f_k
        self.sums: F64 = np.zeros((*shape, skills))  # ubar_k, 0 for CONTEXT
        self.sequence: F64 = np.zeros((*shape, sequence))  # f_k, 0 at share 0
        self.conversion: F64 = np.zeros(shape)  # logit without its bias


def simulate(
    world: World, fitted: Calibration, line: Timelines, record: Record | None = None
) -> Outcome:
    """Draw the labels of all steps, in time order for each user."""
    share = world.config.sequence_share
    pooled_tables = PooledTables(world, fitted)
    sequence_tables = SequenceTables(world) if share else None
    users, steps = line.item.shape
    p, pc = np.empty((users, steps), np.float32), np.empty((users, steps), np.float32)
    click, conversion = np.empty((users, steps), bool), np.empty((users, steps), bool)
    # Blocks as large as the states of a step still fit in a core's cache.
    block = max(64, min(512, 40_000 // sum(world.config.windows))) if share else 512
    for first in range(0, users, block):
        rows = slice(first, min(first + block, users))
        part = line.rows(rows)
        pooled = PooledState(pooled_tables, part)
        sequence = SequenceState(sequence_tables, part) if sequence_tables else None
        happened = np.empty((len(part.user_id), len(EVENT_TYPES)))
        for t in range(steps):
            f, f_context, conversion_sum = pooled.score(t)
            logit = f @ pooled_tables.coef + f_context @ pooled_tables.coef_context
            f_sequence = sequence.score(t) if sequence else None
            if f_sequence is not None:
                logit += fitted.sequence @ f_sequence
            p[rows, t] = _sigmoid(logit + fitted.bias)
            pc[rows, t] = _sigmoid(conversion_sum + fitted.conversion_bias)
            click[rows, t] = part.click_draw[:, t] < p[rows, t]
            conversion[rows, t] = click[rows, t] & (part.conversion_draw[:, t] < pc[rows, t])
            if record is not None and t >= world.config.burn_in:
                at = (rows, t - world.config.burn_in)
                record.pooled[at][:, pooled_tables.state] = f
                record.pooled[at][:, pooled_tables.context] = f_context
                record.sums[at][:, pooled_tables.state] = pooled.sums()
                record.conversion[at] = conversion_sum
                if f_sequence is not None:
                    record.sequence[at] = f_sequence.T
            happened[:, 0] = ~click[rows, t]
            happened[:, 1] = click[rows, t]
            happened[:, 2] = conversion[rows, t]
            pooled.update(t, happened)
            if sequence:
                sequence.update(t, happened)
    return Outcome(p_click=p, p_conversion=pc, click=click, conversion=conversion)


def _sigmoid(logit: F64) -> F32:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -LOGIT_CAP, LOGIT_CAP))), np.float32)


@dataclass(frozen=True)
class Lab:
    """A world with its constants: all that decides the labels of a timeline."""

    world: World
    fitted: Calibration
    split: tuple[int, int]  # ms: begin of valid and of test, at 80 % and 90 % of the samples


def make_lab(config: SyntheticConfig) -> Lab:
    """Build the world and fit its constants on the pilot of (seed, 1); seconds, cached."""
    # What a population's size and a reader's view cannot change is built once.
    return _build(replace(config, users=1, content="visible", history=(1, 1, 1)))


@lru_cache(maxsize=4)
def _build(config: SyntheticConfig) -> Lab:
    world = make_world(config)
    users = max(48, PILOT_IMPRESSIONS // config.steps)
    many = make_timelines(config, np.random.default_rng([config.seed, 1]), 4 * users)
    line = many.rows(slice(0, users))
    fitted = calibrate.first_guess(world)
    for part, rate in PILOT_ROUNDS:
        rows = slice(0, int(part * users))
        record = Record(world, rows.stop)
        simulate(world, fitted, line.rows(rows), record)
        right = calibrate.fit(
            world,
            fitted,
            f_pooled=record.pooled.reshape(-1, config.skills),
            f_sequence=record.sequence.reshape(-1, config.sequence_skills),
            ubar_sd=record.sums.reshape(-1, config.skills).std(axis=0),
            conversion=record.conversion,
        )
        fitted = calibrate.blend(fitted, right, rate)
    valid, test = np.quantile(many.time[:, config.burn_in :], [0.8, 0.9])
    hour = 3_600_000
    return Lab(world, fitted, (round(valid / hour) * hour, round(test / hour) * hour))


@dataclass(frozen=True)
class Chunk:
    """A block of users, all their steps [U, T] and the true probabilities."""

    index: int
    burn_in: int
    line: Timelines
    outcome: Outcome

    def impressions(self, *, labelled_only: bool = True) -> dict[str, Array]:
        """Flat columns, user by user in time order; without the burn-in unless asked for.

        user_id, item_id int64; timestamp int64 ms; hour, device, placement, country int64;
        dense [n, 4] float32; click, conversion bool (False unless clicked); p_click and
        p_conversion (given a click) float32.
        """
        line, out = self.line, self.outcome
        first = self.burn_in if labelled_only else 0
        shape = line.item[:, first:].shape

        def flat(values: Array) -> Array:
            return np.ascontiguousarray(values[:, first:]).reshape(-1)

        repeat = shape[1]
        return {
            "user_id": np.repeat(line.user_id, repeat),
            "item_id": flat(line.item),
            "timestamp": flat(line.time),
            "hour": flat(line.hour),
            "device": flat(line.device),
            "placement": flat(line.placement),
            "country": np.repeat(line.country, repeat),
            "dense": np.repeat(line.dense, repeat, axis=0),
            "click": flat(out.click),
            "conversion": flat(out.conversion),
            "p_click": flat(out.p_click),
            "p_conversion": flat(out.p_conversion),
        }

    def events(self) -> dict[str, Array]:
        """The log of all steps, user by user in time order: user_id, item_id, timestamp, placement
        and event_type (index into EVENT_TYPES).

        A step writes either an impression (shown, not clicked) or a click, and after a click maybe
        a conversion, all with the step's time: a reader that cuts strictly before an impression's
        time never sees its own events.
        """
        shown = self.impressions(labelled_only=False)
        count = 1 + shown["conversion"]
        row = np.repeat(np.arange(len(count)), count)
        second = np.zeros(len(row), bool)
        second[1:] = row[1:] == row[:-1]
        columns = {
            name: shown[name][row] for name in ("user_id", "item_id", "timestamp", "placement")
        }
        kind = np.where(shown["click"], CLICK, IMPRESSION)[row]
        return {**columns, "event_type": np.where(second, CONVERSION, kind)}


def generate(config: SyntheticConfig, chunks: Sequence[int] | None = None) -> Iterator[Chunk]:
    """Stream the population chunk by chunk, in any order and subset; nothing touches a disk.

    Chunk i depends on rng([seed, 2, i]) and the world only. A larger `users` leaves the users that
    were there before as they are.
    """
    lab = make_lab(config)
    for index in range(config.chunks) if chunks is None else chunks:
        first = index * config.chunk_users
        users = min(config.chunk_users, config.users - first)
        if index < 0 or users < 1:
            raise IndexError(f"chunk {index} of {config.chunks}")
        rng = np.random.default_rng([config.seed, 2, index])
        line = make_timelines(config, rng, users, first)
        yield Chunk(index, config.burn_in, line, simulate(lab.world, lab.fitted, line))
