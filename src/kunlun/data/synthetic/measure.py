"""Numbers about a world: the entropy floor, and what knowing only its first skills would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kunlun.data.synthetic.config import SyntheticConfig
from kunlun.data.synthetic.simulate import Record, make_lab, simulate
from kunlun.data.synthetic.timeline import make_timelines
from kunlun.data.synthetic.world import Array


def normalised_entropy(p: Array, predicted: Array | None = None) -> float:
    """Expected normalised entropy of `predicted` where labels follow p; default: p, the floor."""
    p = np.asarray(p, dtype=np.float64)
    q = p if predicted is None else np.asarray(predicted, dtype=np.float64)
    loss = -np.mean(p * np.log(q) + (1 - p) * np.log1p(-q))
    base = p.mean()
    return float(loss / -(base * np.log(base) + (1 - base) * np.log1p(-base)))


def spectrum(config: SyntheticConfig, known: Sequence[int], users: int = 500) -> dict[int, float]:
    """Normalised entropy when only the first k skills of each family are known, for k in `known`.

    The known part of the logit is recalibrated with a slope and a bias, as a model would do.
    Users are those of (seed, 3), outside of every chunk.
    """
    lab = make_lab(config)
    record = Record(lab.world, users)
    line = make_timelines(config, np.random.default_rng([config.seed, 3]), users)
    simulate(lab.world, lab.fitted, line, record)
    families = [
        (record.pooled * lab.fitted.pooled).reshape(-1, config.skills),
        (record.sequence * lab.fitted.sequence).reshape(-1, config.sequence_skills),
    ]
    logit = sum(f.sum(axis=1) for f in families) + lab.fitted.bias
    p = 1 / (1 + np.exp(-np.clip(logit, -10, 10)))
    return {
        k: normalised_entropy(p, _recalibrated(sum(f[:, :k].sum(axis=1) for f in families), p))
        for k in known
    }


def _recalibrated(z: Array, p: Array) -> Array:
    """Best a + b z for targets p, by Newton steps."""
    design = np.stack([np.ones_like(z), z], axis=1).astype(np.float64)
    theta = np.zeros(2)
    for _ in range(30):
        q = 1 / (1 + np.exp(-np.clip(design @ theta, -15, 15)))
        hessian = design.T @ (design * (q * (1 - q))[:, None]) + 1e-9 * np.eye(2)
        theta += np.linalg.solve(hessian, design.T @ (p - q))
    return 1 / (1 + np.exp(-np.clip(design @ theta, -15, 15)))
