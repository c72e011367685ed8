"""The real-data table: Kunlun on kuairand_pure, test days 5-6 May, mean of three seeds.

    python benchmarks/kuairand.py --logs DIR        DIR holds impressions.parquet and the others
    python benchmarks/kuairand.py --table           print the table from the committed results

Two feature tables (raw features and histories; the same with point-in-time counters), one
multi-task model each, settings from the preset `kuairand`, tuned on the validation days only.
Cells are kept in WORK/SCHEMA-HASH, where HASH is of the schema and the logs; finished ones are
skipped, and if the preset is no longer theirs the study stops. Writes
benchmarks/results/kuairand.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "kuairand.json"
EXAMPLES = HERE.parent / "examples" / "kuairand"
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
        place = work / f"{Path(schema).stem}-{_mark(logs)}"
        data = place / "data"
        if not data.exists():
            prepare(EXAMPLES / schema, data, root=logs)
        for seed in range(seeds):
            config = load_run_config("kuairand", [f"data={data}", f"train.seed={seed}"])
            run = train(config, out=place / f"seed{seed}", resume=True)
            environment = json.loads((run / "env.json").read_text())
            del environment["data"]["path"]  # a place on this machine
            cells.append(
                {"table": table, "seed": seed, "git_commit": environment["git_commit"]}
                | json.loads((run / "summary.json").read_text())
            )
    return {
        "command": "python benchmarks/kuairand.py --logs DIR",
        "environment": environment,
        "cells": cells,
    }


def _mark(logs: Path) -> str:
    """Changes with the schemas (one extends the other) and with any of the logs."""
    digest = hashlib.sha256()
    for path in [*sorted(EXAMPLES.glob("*.yaml")), *sorted(logs.glob("*.parquet"))]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


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
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `kunlun` does, before torch is there
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
