"""Measure the presets of the laboratory stream: floor, rates, spectrum, speed on one core.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_presets.py --out benchmarks/results/FILE.json

Floors are of up to --users users of each preset; `impressions_per_s` counts whole timelines,
burn-in included, by processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kunlun.data.synthetic import PRESETS, SyntheticConfig, generate, make_lab
from kunlun.data.synthetic.measure import normalised_entropy, spectrum


def measure(config: SyntheticConfig) -> dict[str, Any]:
    """One row of the table."""
    begin = time.process_time()
    make_lab(config)
    fitted = time.process_time()
    parts = [chunk.impressions() for chunk in generate(config)]
    done = time.process_time()
    data = {k: np.concatenate([p[k] for p in parts]) for k in ("p_click", "click", "p_conversion")}
    p = data["p_click"].astype(np.float64)
    known = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= config.skills]
    few = max(20, min(400, 20_000 // (config.steps - config.burn_in)))
    return {
        "samples": len(p),
        "ne_floor": normalised_entropy(p),
        "base_rate": float(data["click"].mean()),
        "logit_sd": float(np.log(p / (1 - p)).std()),
        "conversion_rate": float(data["p_conversion"][data["click"]].mean()),
        "pilot_s": round(fitted - begin, 2),
        "impressions_per_s": round(config.users * config.steps / (done - fitted)),
        "spectrum": spectrum(config, known, few) if config.burn_in < 1000 else None,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--long-users", type=int, default=240)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name, preset in PRESETS.items():
        users = arguments.long_users if name == "long" else arguments.users
        for share in (preset.sequence_share,) if name != "lab" else (0.0, 0.5, 0.9):
            config = replace(preset, users=min(users, preset.users), sequence_share=share)
            rows.append({"preset": name, "sequence_share": share, **measure(config)})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
