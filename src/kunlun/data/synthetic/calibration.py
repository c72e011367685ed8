"""Constants fitted on a pilot population, so that every world has the same base rate and spread.

Labels feed back into histories, so the fixed point is approached by damped iterations over one
fixed pilot: the result is a function of the configuration alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kunlun.data.synthetic.config import SyntheticConfig
from kunlun.data.synthetic.world import F32, Array, World

CONVERSION_SPREAD, CONVERSION_BIAS = 2.0, -0.6


@dataclass(frozen=True)
class Calibration:
    """logit = bias + pooled . f_pooled + sequence . f_sequence; likewise for conversion."""

    bias: float
    pooled: F32  # [K]
    sequence: F32  # [S]
    state_scale: F32  # [K] .7 / sd of the shrunk mean
    conversion_bias: float
    conversion: F32  # [K]


def first_guess(world: World) -> Calibration:
    """Labels at the base rate, whatever the history."""
    rate = world.config.base_rate
    pooled, sequence = np.zeros_like(world.pooled.weight), np.zeros_like(world.sequence.weight)
    return Calibration(
        bias=float(np.log(rate / (1 - rate))),
        pooled=pooled,
        sequence=sequence,
        state_scale=np.full_like(pooled, 2.0),
        conversion_bias=CONVERSION_BIAS,
        conversion=world.pooled.conversion,
    )


def fit(
    world: World,
    used: Calibration,
    *,
    f_pooled: Array,
    f_sequence: Array,
    ubar_sd: Array,
    conversion: Array,
) -> Calibration:
    """Constants that would be right if the histories stayed as observed.

    f_pooled [N, K], f_sequence [N, S], ubar_sd [K]; conversion [N]: logits of the
    run with `used`, without its bias.
    """
    config, share = world.config, world.config.sequence_share
    pooled = _combine(f_pooled, world.pooled.weight, 1 - share)
    z = f_pooled @ pooled
    sequence = np.zeros_like(world.sequence.weight)
    if share:
        sequence = _combine(f_sequence, world.sequence.weight, share)
        z = z + f_sequence @ sequence
    slope = config.logit_sd / max(float(z.std()), 1e-6)
    spread = CONVERSION_SPREAD / max(float(conversion.std()), 1e-6)
    return Calibration(
        bias=_solve_bias(slope * z, config),
        pooled=(slope * pooled).astype(np.float32),
        sequence=(slope * sequence).astype(np.float32),
        state_scale=(0.7 / np.maximum(ubar_sd, 1e-3)).astype(np.float32),
        conversion_bias=CONVERSION_BIAS - spread * float(conversion.mean()),
        conversion=(spread * used.conversion).astype(np.float32),
    )


def blend(old: Calibration, new: Calibration, rate: float) -> Calibration:
    """A step of `rate` from old to new."""
    return Calibration(
        **{
            name: getattr(old, name) + rate * (getattr(new, name) - getattr(old, name))
            for name in Calibration.__dataclass_fields__
        }
    )


def _combine(f: Array, weight: F32, share: float) -> Array:
    """Coefficients that standardise each skill, then give the weighted sum variance `share`."""
    coef = weight / np.maximum(f.std(axis=0), 1e-4)
    spread = float((f @ coef).std())
    return np.asarray(coef * (np.sqrt(share) / max(spread, 1e-6)))


def _solve_bias(z: Array, config: SyntheticConfig) -> float:
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(np.mean(1 / (1 + np.exp(-middle - z)))) < config.base_rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
