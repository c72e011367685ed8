"""Pooled skills: products of item functions with exponentially decayed sums over the history.

For skill k with event type e and time constant tau, at a request for item c in context q:

    u_k = sum over earlier events of type e of exp(-age / tau) G_k(item)     ubar = u / (1 + n)
    t_k = tanh(.7 ubar / sd)                                    n: the same sum of ones
    CONTEXT B_k(c) q_k    HISTORY B_k(c) t_k    HISTORY_CONTEXT B_k(c) t_k (.6 + q_k)
    ORDER   as HISTORY, with G_k(item) P_k(item of the step before) inside a session, else 0

Shapes: U users of the block, T steps, K skills, H skills that have a state (all but CONTEXT).
All in float64: rounded to float32 at the end, hardly one probability in a hundred million depends
on the CPU.
"""

from __future__ import annotations

import numpy as np

from kunlun.data.synthetic.calibration import Calibration
from kunlun.data.synthetic.timeline import Timelines
from kunlun.data.synthetic.world import (
    CONTEXT,
    DEVICES,
    F64,
    HISTORY_CONTEXT,
    ORDER,
    PLACEMENTS,
    Array,
    World,
)


class PooledTables:
    """The skills in the order of the hot loop: states first (by kind), CONTEXT apart."""

    def __init__(self, world: World, calibration: Calibration) -> None:
        skills = world.pooled
        self.state = np.flatnonzero(skills.kind != CONTEXT)
        self.state = self.state[np.argsort(skills.kind[self.state], kind="stable")]  # [H] -> k
        self.context = np.flatnonzero(skills.kind == CONTEXT)  # -> k
        kind = skills.kind[self.state]
        self.mixed = slice(*np.searchsorted(kind, [HISTORY_CONTEXT, HISTORY_CONTEXT + 1]))
        self.order = slice(*np.searchsorted(kind, [ORDER, ORDER + 1]))
        kinds, memory = skills.event_type[self.state], skills.memory[self.state]
        one = np.eye(9)
        scale = calibration.state_scale[self.state]
        self.by_pair = one[:, kinds * 3 + memory] * scale  # [9, H]: 1 / (1 + n) -> t's factor
        self.by_memory = np.eye(3)[:, memory]  # [3, H]
        self.by_type = np.eye(3)[:, kinds]  # [3, H]
        self.rate = 1 / (3.6e6 * np.array(world.config.memory_hours))
        self.g = _table(skills.g[:, self.state])
        self.b = _table(skills.b[:, self.state])
        self.previous = _table(skills.previous[:, self.state[self.order]])
        self.coef = _table(calibration.pooled[self.state])
        self.conversion = _table(calibration.conversion[self.state])
        self.b_context = _table(skills.b[:, self.context])
        self.coef_context = _table(calibration.pooled[self.context])
        # q of all skills that read it: CONTEXT, then HISTORY_CONTEXT
        self.reads = np.concatenate([self.context, self.state[self.mixed]])
        self.by_slot = _table(skills.by_slot[:, self.reads])
        self.by_country = _table(skills.by_country[:, self.reads])
        self.by_dense = _table(skills.by_dense[:, self.reads])


def _table(values: Array) -> F64:
    return np.ascontiguousarray(values, np.float64)


class PooledState:
    """States of a block of users, moved one step at a time by `score` then `update`."""

    def __init__(self, tables: PooledTables, line: Timelines) -> None:
        self.tables, self.line = tables, line
        users = len(line.user_id)
        self.u: F64 = np.zeros((users, len(tables.state)))
        self.n: F64 = np.zeros((users, 3, 3))  # [U, type, memory]
        self.own = tables.by_country[line.country] + line.dense @ tables.by_dense  # [U, reads]
        self.slot = (line.hour * DEVICES + line.device) * PLACEMENTS + line.placement
        gap = np.diff(line.time, axis=1, prepend=line.time[:, :1])
        self.decay = np.exp(-gap[..., None] * tables.rate)  # [U, T, 3]
        self.same_session = line.session_start < line.time

    def score(self, t: int) -> tuple[F64, F64, F64]:
        """Before step t's label is known: f of the state skills [U, H], f of CONTEXT, and
        the conversion logit without its bias [U]."""
        tables, item = self.tables, self.line.item[:, t]
        decay = self.decay[:, t]
        self.u *= decay @ tables.by_memory
        self.n *= decay[:, None, :]
        q = tables.by_slot.take(self.slot[:, t], axis=0)
        q += self.own
        context = len(tables.context)
        f_context = tables.b_context.take(item, axis=0)
        f_context *= q[:, :context]
        state = (1 / (1 + self.n.reshape(-1, 9))) @ tables.by_pair
        state *= self.u
        np.tanh(state, out=state)
        f = tables.b.take(item, axis=0)
        f *= state
        conversion = 0.6 * (state @ tables.conversion) + f @ tables.conversion
        f[:, tables.mixed] *= 0.6 + q[:, context:]
        return f, f_context, conversion

    def update(self, t: int, happened: F64) -> None:
        """Take in the events of step t: happened [U, 3] is 1 per event type."""
        tables, line = self.tables, self.line
        gain = tables.g.take(line.item[:, t], axis=0)
        order = gain[:, tables.order]
        if t:
            order *= tables.previous.take(line.item[:, t - 1], axis=0)
        order *= self.same_session[:, t, None]
        gain *= happened @ tables.by_type
        self.u += gain
        self.n += happened[:, :, None]

    def sums(self) -> F64:
        """[U, H] shrunk means ubar as they stand, for calibration."""
        pair = 1 / (1 + self.n.reshape(-1, 9))
        sums: F64 = self.u * (pair @ (self.tables.by_pair != 0))
        return sums
