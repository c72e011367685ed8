"""The real-data table: Kunlun on kuairand_pure, test days 5-6 May, mean of three seeds.

    python benchmarks/kuairand.py --logs DIR        DIR holds impressions.parquet and the others
    python benchmarks/kuairand.py --table           print the table from the committed results

Two feature tables (raw features and histories; the same with point-in-time counters), one
multi-task model each, settings from the preset `kuairand`, tuned on the validation days only.
Finished cells are kept in runs/ and skipped. Writes benchmarks/results/kuairand.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "kuairand.json"
SCHEMAS = {
    "raw + histories": "schema.yaml",
    "+ counters, point in time": "schema_counters.yaml",
}
METRICS = ("logloss", "ne", "auc", "calibration")


def study(logs: Path, work: Path, seeds: int) -> dict[str, Any]:
    """Prepare, train and collect every cell."""
    from kunlun.data.prepare import prepare
    from kunlun.training.config import load_run_config
    from kunlun.training.trainer import train

    cells = []
    for table, schema in SCHEMAS.items():
        data = work / "data" / Path(schema).stem
        if not data.exists():
            prepare(HERE.parent / "examples" / "kuairand" / schema, data, root=logs)
        for seed in range(seeds):
            run = work / f"{Path(schema).stem}-seed{seed}"
            if not (run / "summary.json").exists():
                config = load_run_config("kuairand", [f"data={data}", f"train.seed={seed}"])
                train(config, out=run)
            cells.append(
                {"table": table, "seed": seed} | json.loads((run / "summary.json").read_text())
            )
    environment = json.loads((run / "env.json").read_text())
    return {
        "command": "python benchmarks/kuairand.py --logs DIR",
        "environment": environment,
        "cells": cells,
    }


def render(result: dict[str, Any]) -> str:
    """Markdown table: one line a feature table and task, mean +- sd over seeds."""
    lines = [
        "| features | task | seeds | log-loss | NE | AUC | calibration |",
        "|---|---|---|---|---|---|---|",
    ]
    tables = dict.fromkeys(cell["table"] for cell in result["cells"])
    for table in tables:
        cells = [cell for cell in result["cells"] if cell["table"] == table]
        for task in cells[0]["test"]:
            shown = [_mean([cell["test"][task][metric] for cell in cells]) for metric in METRICS]
            lines.append(f"| {table} | {task} | {len(cells)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=Path, help="folder of the raw logs")
    parser.add_argument("--work", type=Path, default=Path("runs/kuairand"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only print the committed table")
    args = parser.parse_args()
    if not args.table:
        if args.logs is None:
            parser.error("--logs DIR is needed, or --table to print the committed results")
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(study(args.logs, args.work, args.seeds), indent=1) + "\n")
    print(render(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
