"""What exists before any user comes: items, their functions, and the skills.

Shapes: I items, D latent dimensions, K pooled skills, S sequence skills. Everything here follows
from (seed, 0) and the configuration; nothing depends on users. Skill kinds follow fixed patterns,
never draws: a world whose heaviest skill is of a hard kind would be another laboratory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kunlun.data.synthetic.config import CATEGORIES, SUBCATEGORIES, SyntheticConfig

Array = NDArray[Any]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

EVENT_TYPES = ("impression", "click", "conversion")  # "impression" here: shown and not clicked
IMPRESSION, CLICK, CONVERSION = range(3)
HOURS, DEVICES, PLACEMENTS, COUNTRIES, DENSE = 24, 4, 8, 16, 4

CONTEXT, HISTORY, HISTORY_CONTEXT, ORDER = range(4)  # kinds of pooled skills
KIND_SHARES = (0.24, 0.56, 0.15, 0.05)  # of the pooled variance
SEQUENCE_PATTERN = "RAPGRCAPRSXC"  # kinds of sequence skills, repeated
SEQUENCE_MEMORY_HOURS = (8.0, 48.0, float("inf"))
TYPES_IN_TURN = (CLICK, IMPRESSION, CONVERSION)


@dataclass(frozen=True)
class PooledSkills:
    """Skills on exponentially decayed sums; arrays over k = 0..K-1."""

    weight: F32  # [K] k ** -spectrum
    kind: Array  # [K] int
    event_type: Array  # [K] int
    memory: Array  # [K] int, index into memory_hours
    g: F32  # [I, K] item function, event side
    previous: F32  # [I, K] item function of the impression before it (kind ORDER)
    b: F32  # [I, K] item function, candidate side
    by_slot: F32  # [24 * 4 * 8, K] context function by (hour, device, placement)
    by_country: F32  # [16, K]
    by_dense: F32  # [4, K]
    conversion: F32  # [K] weight in the conversion logit


@dataclass(frozen=True)
class SequenceSkills:
    """Skills that compare the candidate with single events; arrays over k = 0..S-1."""

    weight: F32  # [S]
    kind: str  # S letters
    event_type: Array  # [S] int; kinds R, A, C
    memory: Array  # [S] float seconds, inf = none
    quadratic: Array  # [S, D, D] float64: kappa = exp(-delta' Q delta)
    g: F32  # [I, S]
    b: F32  # [I, S]
    frequency: F32  # [S] kind G
    phase: F32  # [S] kind G
    level: Array  # [S] 0 category, 1 subcategory; kinds G, S
    modulated: Array  # [S] bool; kind S times b


@dataclass(frozen=True)
class World:
    """Items and skills of one configuration."""

    config: SyntheticConfig
    category: Array  # [I] int
    subcategory: Array  # [I] int
    content: F32  # [I, D], unit mean square
    pooled: PooledSkills
    sequence: SequenceSkills


def make_world(config: SyntheticConfig) -> World:
    """Build the world of (seed, 0)."""
    rng = np.random.default_rng([config.seed, 0])
    n = config.items // SUBCATEGORIES
    subcategory = np.repeat(np.arange(SUBCATEGORIES), n)
    category = subcategory // (SUBCATEGORIES // CATEGORIES)
    d = config.latent
    v = (
        0.75 * rng.standard_normal((CATEGORIES, d))[category]
        + 0.5 * rng.standard_normal((SUBCATEGORIES, d))[subcategory]
        + 0.43 * rng.standard_normal((config.items, d))
    )
    content = (v / np.sqrt(np.mean(v**2))).astype(np.float32)
    return World(
        config=config,
        category=category,
        subcategory=subcategory,
        content=content,
        pooled=_pooled(config, content, np.random.default_rng([config.seed, 0, 1])),
        sequence=_sequence(config, content, np.random.default_rng([config.seed, 0, 2])),
    )


def _functions(content: F32, count: int, rng: np.random.Generator) -> F32:
    """[I, count] unit-variance item functions: smooth first, rough later, 5 % only through ids."""
    roughness = np.minimum(0.5 * np.arange(1, count + 1) ** 0.25, 3.0)
    w = rng.standard_normal((content.shape[1], count))
    w /= np.linalg.norm(w, axis=0)
    value = np.sin(np.sqrt(2) * roughness * (content @ w) + rng.uniform(0, 2 * np.pi, count))
    value = (value - value.mean(0)) / value.std(0)
    noise = rng.standard_normal(value.shape)
    functions: F32 = (np.sqrt(0.95) * value + np.sqrt(0.05) * noise).astype(np.float32)
    return functions


def pooled_kinds(weight: Array) -> Array:
    """Give each skill in turn the kind that is furthest below its share of variance."""
    variance = np.asarray(weight, dtype=np.float64) ** 2
    given, kinds = np.zeros(len(KIND_SHARES)), []
    for total, own in zip(np.cumsum(variance), variance, strict=True):
        kind = int(np.argmax(np.array(KIND_SHARES) * total - given))
        given[kind] += own
        kinds.append(kind)
    return np.array(kinds)


def _pooled(config: SyntheticConfig, content: F32, rng: np.random.Generator) -> PooledSkills:
    count = config.skills
    k = np.arange(1, count + 1)
    weight = (k**-config.spectrum).astype(np.float32)
    kind = pooled_kinds(weight)
    turn = np.cumsum(kind != CONTEXT) - 1  # counts skills with a history, so all nine pairs occur
    hour, device, placement, country, dense = (
        rng.standard_normal((size, count)) / np.sqrt(5)
        for size in (HOURS, DEVICES, PLACEMENTS, COUNTRIES, DENSE)
    )
    slot = hour[:, None, None] + device[None, :, None] + placement[None, None]
    return PooledSkills(
        weight=weight,
        kind=kind,
        event_type=np.array(TYPES_IN_TURN)[turn % 3],
        memory=np.array((1, 2, 0))[turn // 3 % 3],
        g=_functions(content, count, rng),
        previous=_functions(content, count, rng),
        b=_functions(content, count, rng),
        by_slot=slot.reshape(-1, count).astype(np.float32),
        by_country=country.astype(np.float32),
        by_dense=(dense / np.sqrt(DENSE)).astype(np.float32),
        conversion=np.where(kind == CONTEXT, 0, weight * (1 - 2 * (turn % 2))).astype(np.float32),
    )


def _sequence(config: SyntheticConfig, content: F32, rng: np.random.Generator) -> SequenceSkills:
    count, d = config.sequence_skills, config.latent
    k = np.arange(1, count + 1)
    if config.kernel == "sharp":
        bandwidth = np.maximum(0.4 * k**-0.3, 0.12)
    else:
        bandwidth = np.maximum(k**-0.35, 0.25)
    kind = "".join(SEQUENCE_PATTERN[i % len(SEQUENCE_PATTERN)] for i in range(count))
    turn = np.array([kind[:i].count(kind[i]) for i in range(count)])  # occurrence within its kind
    plane = np.linalg.qr(rng.standard_normal((count, d, 2)))[0]  # [S, D, 2] orthonormal
    quadratic = plane @ plane.transpose(0, 2, 1) / (2 * bandwidth[:, None, None] ** 2)
    return SequenceSkills(
        weight=(k**-config.spectrum).astype(np.float32),
        kind=kind,
        event_type=np.array(TYPES_IN_TURN)[turn % 3],
        memory=3600 * np.array(SEQUENCE_MEMORY_HOURS)[(turn + k) % 3],
        quadratic=quadratic,
        g=_functions(content, count, rng),
        b=_functions(content, count, rng),
        frequency=(1.2 + 0.4 * turn).astype(np.float32),
        phase=rng.uniform(0, 2 * np.pi, count).astype(np.float32),
        level=turn % 2,
        modulated=turn >= 2,
    )
