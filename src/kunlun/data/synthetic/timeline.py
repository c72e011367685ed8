"""Who sees what, when and where: everything of a user's timeline that labels cannot change.

Shapes: U users, T steps. A user has four topics whose weights swing with periods of half a day to
a month (`drift`), so interest drifts in closed form of time. Inside a session the topic is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from kunlun.data.synthetic.config import CATEGORIES, SUBCATEGORIES, SyntheticConfig
from kunlun.data.synthetic.world import COUNTRIES, DENSE, DEVICES, PLACEMENTS, Array

CALENDAR_START = 1_736_121_600_000  # ms: Monday 2025-01-06T00:00:00Z
SESSION_GAP = 1_800_000  # ms: a longer pause begins a new session, for skills and readers alike
DAY = 86_400_000  # ms
TOPIC_PERIODS = (0.5, 2.0, 7.0, 30.0)  # days

_USER_DRAWS, _STEP_DRAWS = 16, 12


@dataclass(frozen=True)
class Timelines:
    """Users [U] and their steps [U, T]."""

    user_id: Array  # [U] int64
    country: Array  # [U] int64
    dense: Array  # [U, 4] float32, standard normal
    item: Array  # [U, T] int64
    time: Array  # [U, T] int64 ms, strictly increasing along a row
    session_start: Array  # [U, T] int64 ms, time of the first step of the step's session
    device: Array  # [U, T] int64
    placement: Array  # [U, T] int64
    click_draw: Array  # [U, T] float64 in [0, 1): click where below p
    conversion_draw: Array  # [U, T] float64

    @property
    def hour(self) -> Array:
        """[U, T] hour of day, UTC."""
        return self.time // 3_600_000 % 24

    def rows(self, chosen: slice) -> Timelines:
        """Some users."""
        return Timelines(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


def make_timelines(
    config: SyntheticConfig, rng: np.random.Generator, users: int, first_user: int = 0
) -> Timelines:
    """Timelines of `users` users. One row of draws a user: fewer users give a prefix."""
    steps = config.steps
    draws = rng.random((users, _USER_DRAWS + steps * _STEP_DRAWS))
    own, step = draws[:, :_USER_DRAWS], draws[:, _USER_DRAWS:].reshape(users, _STEP_DRAWS, steps)
    topics = (own[:, :4] * SUBCATEGORIES).astype(np.int64)  # [U, 4]
    home = topics[:, 0] // (SUBCATEGORIES // CATEGORIES) % COUNTRIES
    country = np.where(own[:, 8] < 0.6, home, (own[:, 9] * COUNTRIES).astype(np.int64))
    begin = own[:, 10] * config.days * DAY
    time, new = _times(step[:, 0], step[:, 1], step[:, 2], begin)
    index = np.arange(steps)
    start = np.maximum.accumulate(np.where(new, index, 0), axis=1)  # [U, T] step of session start

    topic = _topics(time, step[:, 3], own[:, 4:8], config.drift)
    topic = np.take_along_axis(topics, np.take_along_axis(topic, start, 1), 1)
    anywhere = step[:, 4] < 0.25
    sub = np.where(anywhere, (step[:, 4] * 4 * SUBCATEGORIES).astype(np.int64), topic)
    size = config.items // SUBCATEGORIES
    rank = np.minimum(np.exp(step[:, 5] * np.log(size + 1)).astype(np.int64) - 1, size - 1)
    item = _repeat(sub * size + rank, step[:, 6] < 0.15, step[:, 7])

    main_device = (own[:, 11] * DEVICES).astype(np.int64)
    used = np.take_along_axis(step[:, 9], start, 1)
    device = np.where(used < 0.7, main_device[:, None], ((used - 0.7) / 0.3 * DEVICES).astype(int))
    return Timelines(
        user_id=first_user + np.arange(users),
        country=country,
        dense=_normal(own[:, 12:14], own[:, 14:16]).reshape(users, DENSE).astype(np.float32),
        item=item,
        time=time,
        session_start=np.take_along_axis(time, start, 1),
        device=device.astype(np.int64),
        placement=(step[:, 8] * PLACEMENTS).astype(np.int64),
        click_draw=step[:, 10],
        conversion_draw=step[:, 11],
    )


def _normal(u: Array, v: Array) -> Array:
    """Two independent standard normals for each pair of uniforms, stacked on a last axis."""
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _times(session: Array, u: Array, v: Array, begin: Array) -> tuple[Array, Array]:
    """Times in ms [U, T] and whether a step begins a session."""
    pause = 3_600_000 * np.exp(1.6 + 0.8 * _normal(u, v)[..., 0])
    within = np.clip(-120_000 * np.log1p(-u), 1_000, SESSION_GAP)
    new = session < 0.2
    gap = np.where(new, np.maximum(pause, SESSION_GAP + 1_000), within).astype(np.int64)
    gap[:, 0], new[:, 0] = 0, True
    return CALENDAR_START + begin.astype(np.int64)[:, None] + np.cumsum(gap, axis=1), new


def _topics(time: Array, draw: Array, phase: Array, drift: float) -> Array:
    """[U, T] in 0..3: which of the user's topics a session beginning now would have."""
    days = (time - CALENDAR_START) / DAY
    total = np.zeros(time.shape)
    below = []
    for m, period in enumerate(TOPIC_PERIODS):
        total += 1.05 + drift * np.cos(2 * np.pi * (days / period + phase[:, m : m + 1]))
        below.append(total.copy())
    return sum((draw * total >= b).astype(np.int64) for b in below[:-1])  # type: ignore[return-value]


def _repeat(item: Array, repeat: Array, draw: Array) -> Array:
    """Show an earlier item of the user again, at a log-uniform distance in steps."""
    index = np.broadcast_to(np.arange(item.shape[1]), item.shape)
    lag = np.exp(draw * np.log(index + 1)).astype(np.int64)
    source = np.where(repeat & (index > 0), index - np.minimum(lag, index), index)
    while True:  # the earlier step may itself repeat one: follow to the first
        further = np.take_along_axis(source, source, 1)
        if np.array_equal(further, source):
            return np.take_along_axis(item, source, 1)
        source = further
