"""The laboratory stream: synthetic impressions whose true click probability is known.

    from kunlun.data.synthetic import PRESETS, generate, write_raw
    for chunk in generate(PRESETS["tiny"]):        # arrays, streamed, nothing on disk
        chunk.impressions()["p_click"]
    write_raw(PRESETS["demo"], Path("raw"))        # Parquet logs and a schema.yaml

    logit = b + sum_k a_k f_k (pooled skills, pooled.py) + sum_k a'_k f'_k (sequence skills)

Every skill is a closed formula of what is visible strictly before the impression, so p is the
exact Bayes probability and the lowest reachable normalised entropy is a number. Read in this
order: config (dials), world (items, skills), timeline (who sees what), pooled and sequence (the
skills), calibration, simulate (labels), write (files). Only numpy is needed to generate.
"""

from __future__ import annotations

from kunlun.data.synthetic.config import PRESETS, SyntheticConfig
from kunlun.data.synthetic.simulate import Chunk, Lab, generate, make_lab
from kunlun.data.synthetic.timeline import CALENDAR_START
from kunlun.data.synthetic.world import EVENT_TYPES

__all__ = [
    "CALENDAR_START",
    "EVENT_TYPES",
    "PRESETS",
    "Chunk",
    "Lab",
    "SyntheticConfig",
    "generate",
    "make_lab",
    "synthesize",
    "write_raw",
]

from kunlun.data.synthetic.write import synthesize, write_raw
