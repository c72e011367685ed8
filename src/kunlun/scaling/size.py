"""How large a model must be to cost what another one costs.

Every model grows along the axes of its own paper: widths together, in steps that its heads allow;
inner widths then close the gap between two steps; depth moves only if both cannot reach the budget.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kunlun.errors import ConfigError
from kunlun.models.flops import count, lengths_of
from kunlun.models.io import build, resolve
from kunlun.training import rundir, source
from kunlun.training.config import TrainConfig
from kunlun.training.plan import short_tables

SAMPLES = 2048  # enough that two draws of them agree within a fraction of a percent
TOLERANCE = 0.05
REACH = 64  # how many times narrower or wider than configured a model may get
STEP = 4  # odd widths are slow on every machine
GAPS = (2.0, 4.0)  # how far inner widths may leave the configured proportions; then, if need be


@dataclass(frozen=True)
class Axes:
    """Dotted keys of a configuration; `*` stands for every key of a group, absent ones are skipped.

    width: grow together, each in steps of `multiple` times the `unit` of its own group, or of 4 if
    there is none. inner: grow with them, in steps of 4. depth: None if the model has none.
    """

    width: tuple[str, ...] = ("dim",)
    inner: tuple[str, ...] = ("hidden", "head_hidden")
    depth: str | None = "layers"
    unit: str = "heads"
    multiple: int = 1


AXES: dict[str, Axes] = {
    "kunlun": Axes(
        width=("dim", "tower.dim", "events.*.dim"),
        inner=("interaction.hidden", "tower.ffn.rows", "events.*.ffn.rows", "head_hidden"),
        multiple=2,  # rotary pairs
    ),
    "interformer": Axes(multiple=2),
    "wukong": Axes(
        width=("dim", "n_products", "n_linear"), inner=("rank", "hidden", "head_hidden")
    ),
    "hstu": Axes(inner=("head_hidden",)),
    "transact": Axes(),
    "bst": Axes(),
    "din": Axes(inner=("attention", "hidden", "head_hidden"), depth=None),
    "dcnv2": Axes(),
    "dlrm": Axes(depth=None),
    "rankmixer": Axes(inner=("attention", "hidden", "head_hidden"), unit="tokens"),
    "onetrans": Axes(),
}
USUAL = Axes()  # of a model without a line above


@dataclass(frozen=True)
class Cost:
    """params: all. dense_params: without embedding tables. flops: forward, a sample."""

    params: int
    dense_params: int
    flops: float


def typical_lengths(dataset: Any) -> dict[str, Tensor]:
    """Event type -> history lengths int64 [n] of n random training samples, always the same."""
    settings = TrainConfig(batch_size=SAMPLES)
    batch = next(iter(source.make_loader(dataset, "train", settings, shuffle=True)))
    return lengths_of(batch)


def cost(dataset: Any, section: dict[str, Any], lengths: dict[str, Tensor], who: str) -> Cost:
    """What the model of this section costs; no memory is taken for its tables.

    Raises ConfigError naming `who`: a section that its model refuses for this schema.
    """
    with torch.random.fork_rng(devices=[]):
        model = build(short_tables(dataset.schema), section, who)
    rows = count(model, lengths)
    dense = sum(row.parameters for row in rows if row.module != "embedding.tables")
    tables = sum(size * dim for size, dim in dataset.schema.table_sizes.values())
    return Cost(dense + tables, dense, sum(row.flops for row in rows))


def fit(
    section: dict[str, Any],
    budget: float,
    measure: Callable[[dict[str, Any]], float],
    who: str,
    *,
    tolerance: float = TOLERANCE,
    fixed: Collection[str] = (),
) -> dict[str, Any]:
    """The section of the same model whose `measure` is within `tolerance` of the budget.

    measure: section -> what it costs, growing with every axis; may raise ConfigError for sizes the
    model does not have. As configured if that fits. fixed: dotted keys that keep their value unless
    no size fits otherwise. Raises ConfigError: the section cannot be
    built, or no size fits (with the nearest values that can be reached).
    """
    name = section.get("name", "kunlun")
    axes, whole = AXES.get(name, USUAL), {"name": name, **resolve(section, who)[1].to_dict()}
    configured = measure(whole)
    if _fits(configured, budget, tolerance):
        return whole
    tried = {configured: whole}
    known: dict[str, float] = {}  # a search comes by one size again and again

    def value(candidate: dict[str, Any]) -> float:
        key = json.dumps(candidate, sort_keys=True)
        if key not in known:
            try:
                known[key] = measure(candidate)
                tried[known[key]] = candidate
            except ConfigError:  # such as more experts than tokens
                known[key] = math.nan
        return known[key]

    wanted = [_free(axes, whole, fixed)] if fixed else []
    for free in (*wanted, axes):
        for gap, start in itertools.product(GAPS, _depths(whole, free)):
            _search(start, free, budget, value, tolerance, gap)
            best = min(tried, key=lambda found: abs(found - budget))
            if _fits(best, budget, tolerance):
                return tried[best]
    near = [max((f for f in tried if f < budget), default=None),
            min((f for f in tried if f > budget), default=None)]  # fmt: skip
    texts = " and ".join(f"{f:.4g}" for f in near if f is not None)
    raise ConfigError(
        f"{who}: no size within {tolerance:.0%} of {budget:.4g}; the nearest it reaches: {texts}"
    )


def _free(axes: Axes, section: dict[str, Any], fixed: Collection[str]) -> Axes:
    """The axes of this section but for its fixed keys."""
    width, inner = (
        tuple(key for key in _keys(section, patterns) if key not in fixed)
        for patterns in (axes.width, axes.inner)
    )
    depth = None if axes.depth in fixed else axes.depth
    return dataclasses.replace(axes, width=width, inner=inner, depth=depth)


def _fits(found: float, budget: float, tolerance: float) -> bool:
    return abs(found - budget) <= tolerance * budget  # a NaN does not


def _search(
    start: dict[str, Any],
    axes: Axes,
    budget: float,
    value: Callable[[dict[str, Any]], float],
    tolerance: float,
    gap: float,
) -> None:
    """Try sizes towards the budget at one depth: widths first, inner widths in their last gap."""
    steps = {key: _step(start, key, axes) for key in _keys(start, axes.width)}

    def at(width: float, inner: float = 1.0) -> float:
        candidate = copy.deepcopy(start)
        for key, step in steps.items():
            _set(candidate, key, max(step, round(_get(start, key) * width / step) * step))
        for key in _keys(start, axes.inner):
            wanted = _get(start, key) * width * inner
            _set(candidate, key, max(STEP, round(wanted / STEP) * STEP))
        return value(candidate)

    low = high = 1.0
    up = at(1.0) < budget
    while (at(high) < budget) if up else not at(low) < budget:
        low, high = (high, high * 2**0.5) if up else (low / 2**0.5, low)
        if not 1 / REACH <= low <= high <= REACH:
            break
    for _ in range(8):  # 2 ** (1/2 ** 9): finer than one step of any width below 512
        middle = (low * high) ** 0.5
        found = at(middle)
        if _fits(found, budget, tolerance / 2):
            return
        low, high = (middle, high) if found < budget else (low, middle)
    for width, inner in ((low, (1.0, gap)), (high, (1 / gap, 1.0))):
        _bisect_inner(partial(at, width), *inner, budget, tolerance)


def _bisect_inner(
    at: Callable[[float], float], low: float, high: float, budget: float, tolerance: float
) -> None:
    for _ in range(7):
        middle = (low * high) ** 0.5
        found = at(middle)
        if _fits(found, budget, tolerance / 5):
            return
        low, high = (middle, high) if found < budget else (low, middle)


def _depths(whole: dict[str, Any], axes: Axes) -> Iterator[dict[str, Any]]:
    """As configured, then one layer more or less at a time, up to twice as deep."""
    yield whole
    if axes.depth is None:
        return
    configured = _get(whole, axes.depth)
    for distance in range(1, configured + 1):
        for depth in (configured + distance, configured - distance):
            if depth >= 1:
                other = copy.deepcopy(whole)
                _set(other, axes.depth, depth)
                yield other


def _keys(section: dict[str, Any], patterns: tuple[str, ...]) -> list[str]:
    """The dotted keys of a section, with a number behind them, that the patterns name."""
    found = []
    for pattern in patterns:
        group, star, key = pattern.partition(".*.")
        options = [f"{group}.{k}.{key}" for k in section.get(group, {})] if star else [pattern]
        found += [key for key in options if _get(section, key) is not None]
    return found


def _step(section: dict[str, Any], key: str, axes: Axes) -> int:
    group = key.rpartition(".")[0]
    unit = _get(section, f"{group}.{axes.unit}" if group else axes.unit)
    if unit is None and group.startswith("events."):
        unit = _get(section, f"tower.{axes.unit}")
    return STEP if unit is None else axes.multiple * int(unit)


def _get(section: dict[str, Any], key: str) -> Any:
    value: Any = section
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _set(section: dict[str, Any], key: str, value: int) -> None:
    *parents, last = key.split(".")
    for part in parents:
        section = section[part]
    section[last] = value


def changed(section: dict[str, Any], scaled: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of the model in which a scaled section differs from the one it came from."""
    before, after = (rundir.flat(resolve(s, "model")[1].to_dict()) for s in (section, scaled))
    return {f"model.{key}": new for key, new in after.items() if before.get(key) != new}
