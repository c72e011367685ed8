"""Sequence skills: the candidate against single events; they do not factorise into pooled states.

Over the last `windows` events of a type, kappa_j = exp(-|P (x_c - x_j)|^2 / 2 h^2) with a plane P
and a sharp bandwidth h, w_j = exp(-age_j / tau), d = sum_j w_j kappa_j, e the skill's event type:

    R  sum_j w kappa g(j) / (.3 + d_e)                     target attention
    A  (d_e / (1 + sum_j w) - .3) B(c)                     density of similar events
    C  as R, over events whose placement equals the request's modulo 4
    P  (d_click - d_shown / 3) / (.3 + d_click + d_shown / 3)      personal rate on similar items
    G  sin(a ln(1 + gap / 600 s) + phi), 0 without one; gap to the last click of the category
    S  tanh(.7 now - .35 earlier - .2) [B(c)]: clicks of the category in this session, before it
    X  sqrt(d_click d_conversion)

G and S alternate between category and subcategory; from the third on S is multiplied by B(c).
The quadratic form is linear in the products of delta's coordinates, so that all kernels of one
event type are one matrix product and one exp: rows E = skills x features, columns window x users.
"""

from __future__ import annotations

import numpy as np

from kunlun.data.synthetic.timeline import Timelines
from kunlun.data.synthetic.world import (
    CLICK,
    CONVERSION,
    EVENT_TYPES,
    F64,
    IMPRESSION,
    Array,
    World,
)

_NEVER = -200.0  # exp of it is nothing beside any weight
_TYPES_OF = {"P": (IMPRESSION, CLICK), "X": (CLICK, CONVERSION), "G": (), "S": ()}


class KernelRows:
    """Kernels of one event type: for each row the skill, and coefficients over the features.

    Features: D (D + 1) / 2 products of delta, age in hours, another placement modulo 4, absent.
    """

    def __init__(self, world: World, event_type: int) -> None:
        skills = world.sequence
        self.skills = [
            s
            for s, kind in enumerate(skills.kind)
            if event_type in _TYPES_OF.get(kind, (int(skills.event_type[s]),))
        ]
        self.row = {s: i for i, s in enumerate(self.skills)}
        self.attends = [s for s in self.skills if skills.kind[s] in "RC"]
        self.weighs = [s for s in self.skills if skills.kind[s] == "A"]  # also need sum_j w
        self.upper = np.triu_indices(world.content.shape[1])
        rows = []
        for s in self.skills:
            q = skills.quadratic[s]
            products = (q + q.T - np.diag(np.diag(q)))[self.upper]
            other = _NEVER if skills.kind[s] == "C" else 0
            rows.append([*-products, -3600 / skills.memory[s], other, _NEVER])
        for s in self.weighs:
            rows.append([*np.zeros(len(self.upper[0])), -3600 / skills.memory[s], 0, _NEVER])
        self.coef = np.array(rows).reshape(len(rows), len(self.upper[0]) + 3)
        self.g = np.ascontiguousarray(skills.g[:, self.attends])
        self.attend_rows = np.array([self.row[s] for s in self.attends], np.int64)


class SequenceTables:
    """Everything of the world that the hot loop reads."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows = [KernelRows(world, e) for e in range(len(EVENT_TYPES))]
        self.levels = (world.category, world.subcategory)


class _Ring:
    """The last W events of one type for each user; slots are filled in turn."""

    def __init__(self, rows: KernelRows, window: int, users: int, latent: int) -> None:
        self.window = window
        self.head = np.zeros(users, np.int64)
        self.content: F64 = np.zeros((latent, window, users))
        self.g: F64 = np.zeros((len(rows.attends), window, users))
        self.time = np.zeros((window, users))  # ms
        self.placement = np.zeros((window, users), np.int8)
        self.item = np.zeros((window, users), np.int64)
        self.absent: F64 = np.ones((window, users))
        self.features: F64 = np.empty((len(rows.coef[0]), window, users))
        self.kernels: F64 = np.empty((len(rows.coef), window, users))


class SequenceState:
    """Windows of a block of users, moved one step at a time by `score` then `update`."""

    def __init__(self, tables: SequenceTables, line: Timelines) -> None:
        self.tables, self.line = tables, line
        world, users = tables.world, len(line.user_id)
        self.time = (line.time - line.time[:, :1]).astype(np.float64)
        self.session = (line.session_start - line.time[:, :1]).astype(np.float64)
        self.rings = [
            _Ring(rows, window, users, world.content.shape[1])
            for rows, window in zip(tables.rows, world.config.windows, strict=True)
        ]

    def score(self, t: int) -> F64:
        """[S, U] skills of step t, from the events before it."""
        skills = self.tables.world.sequence
        item = self.line.item[:, t]
        density = [self._kernels(e, t) for e in range(len(EVENT_TYPES))]
        b = skills.b.take(item, axis=0)  # [U, S]
        f: F64 = np.empty((len(skills.kind), len(item)))
        for e, rows in enumerate(self.tables.rows):
            ring, d = self.rings[e], density[e]
            if rows.attends:
                own = ring.kernels[rows.attend_rows] * ring.g
                f[rows.attends] = own.sum(axis=1) / (0.3 + d[rows.attend_rows])
            for i, s in enumerate(rows.weighs):
                total = d[len(rows.skills) + i]
                f[s] = (d[rows.row[s]] / (1 + total) - 0.3) * b[:, s]
        rows_of = [rows.row for rows in self.tables.rows]
        same = self._same_category(item)
        for s, kind in enumerate(skills.kind):
            if kind == "P":
                click = density[CLICK][rows_of[CLICK][s]]
                shown = density[IMPRESSION][rows_of[IMPRESSION][s]] / 3
                f[s] = (click - shown) / (0.3 + click + shown)
            elif kind == "X":
                pair = density[CLICK][rows_of[CLICK][s]]
                f[s] = np.sqrt(pair * density[CONVERSION][rows_of[CONVERSION][s]])
            elif kind == "G":
                f[s] = self._gap(s, t, same[skills.level[s]])
            elif kind == "S":
                f[s] = self._session(s, t, same[skills.level[s]])
                if skills.modulated[s]:
                    f[s] *= b[:, s]
        return f

    def _kernels(self, e: int, t: int) -> F64:
        """Fill the ring's kernels w kappa; returns their sums over the window [rows, U]."""
        rows, ring, line = self.tables.rows[e], self.rings[e], self.line
        if not len(rows.coef):
            return np.empty((0, len(line.user_id)))
        x = self.tables.world.content.take(line.item[:, t], axis=0).T  # [D, U]
        delta = ring.content - x[:, None]
        features = ring.features
        for i, (a, b) in enumerate(zip(*rows.upper, strict=True)):
            np.multiply(delta[a], delta[b], out=features[i])
        features[-3] = (self.time[:, t] - ring.time) * (1 / 3.6e6)
        features[-2] = (ring.placement - line.placement[:, t]) % 4 != 0
        features[-1] = ring.absent
        flat = ring.kernels.reshape(len(rows.coef), -1)
        np.matmul(rows.coef, features.reshape(len(features), -1), out=flat)
        np.exp(flat, out=flat)
        total: F64 = ring.kernels.sum(axis=1)
        return total

    def _same_category(self, item: Array) -> list[Array]:
        """[W, U] bool for category and subcategory: clicks of the candidate's."""
        ring = self.rings[CLICK]
        present = ring.absent == 0
        return [(level[ring.item] == level[item]) & present for level in self.tables.levels]

    def _gap(self, s: int, t: int, same: Array) -> F64:
        skills = self.tables.world.sequence
        last = np.where(same, self.rings[CLICK].time, -np.inf).max(axis=0)
        known = np.isfinite(last)
        gap = np.where(known, self.time[:, t] - last, 0) / 6e5
        wave = np.sin(skills.frequency[s] * np.log1p(gap) + skills.phase[s])
        return np.where(known, wave, 0)

    def _session(self, s: int, t: int, same: Array) -> F64:
        now = (same & (self.rings[CLICK].time >= self.session[:, t])).sum(axis=0)
        earlier = same.sum(axis=0) - now
        f: F64 = np.tanh(0.7 * now - 0.35 * earlier - 0.2)
        return f

    def update(self, t: int, happened: F64) -> None:
        """Take in the events of step t: happened [U, 3] is 1 per event type."""
        world, line = self.tables.world, self.line
        for e, (rows, ring) in enumerate(zip(self.tables.rows, self.rings, strict=True)):
            users = np.flatnonzero(happened[:, e])
            slot = ring.head[users] % ring.window
            item = line.item[users, t]
            ring.head[users] += 1
            ring.content[:, slot, users] = world.content[item].T
            ring.g[:, slot, users] = rows.g[item].T
            ring.time[slot, users] = self.time[users, t]
            ring.placement[slot, users] = line.placement[users, t]
            ring.item[slot, users] = item
            ring.absent[slot, users] = 0
