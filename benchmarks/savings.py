"""What CompSkip and the sliding window spare: forward FLOPs of the preset `base`.

    python benchmarks/savings.py            compute, write benchmarks/results/savings.json
    python benchmarks/savings.py --table    print the table from the committed results

Three event types; history lengths uniform between 0 and the cap, so half of it on average.
Counted by the formulas beside the layers, which the tests hold against torch's flop counter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "savings.json"
CAPS = (128, 512, 2048)
PAPER = {"CompSkip": 0.431, "window": 0.295}  # arXiv 2602.10016, its production setting


def measure(cap: int) -> dict[str, Any]:
    """Savings at histories of up to `cap` events a type."""
    import torch

    from kunlun.config import parse
    from kunlun.features.schema import Schema
    from kunlun.training.config import load_run_config
    from kunlun.training.plan import forward_flops, savings

    categorical = {"kind": "categorical", "size": 100}
    schema = parse(
        Schema,
        {
            "tables": {"impressions": {"files": "none"}},
            "split": {"valid": "2025-01-01T00:00:00+00:00", "test": "2025-01-02T00:00:00+00:00"},
            "labels": {"click": {}},
            "features": {
                "item": {"role": "item", **categorical},
                **{f"field{i}": {"role": "context", **categorical} for i in range(63)},
            },
            "events": {
                kind: {"max_len": cap, "item_features": ["item"]}
                for kind in ("click", "impression", "conversion")
            },
        },
        "savings",
    )
    section = load_run_config("base", ["data=none"]).model
    lengths = {kind: torch.arange(cap + 1) for kind in schema.events}
    alone = savings(schema, {**section, "comp_skip": False}, lengths)
    found = savings(schema, section, lengths)
    return {
        "cap": cap,
        "forward_flops": forward_flops(schema, section, lengths),
        "comp_skip": found["CompSkip"],
        "window": found["window"],
        "window_without_comp_skip": alone["window"],
    }


def render(result: dict[str, Any]) -> str:
    """Markdown table, with the paper's figures as its last line."""
    lines = [
        "| histories up to | forward GFLOPs a sample | CompSkip spares | window spares "
        "| window spares, CompSkip off |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        shares = (row["comp_skip"], row["window"], row["window_without_comp_skip"])
        shown = " | ".join(f"{share:.1%}" for share in shares)
        lines.append(f"| {row['cap']} | {row['forward_flops'] / 1e9:.2f} | {shown} |")
    paper = result["paper"]
    lines.append(f"| paper | | {paper['CompSkip']:.1%} | {paper['window']:.1%} | |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only print the committed table")
    if not parser.parse_args().table:
        result = {"command": "python benchmarks/savings.py", "paper": PAPER}
        result["rows"] = [measure(cap) for cap in CAPS]
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(render(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
