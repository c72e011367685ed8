"""A narrow table of what `kunlun compare` wrote, for README and docs.

    python benchmarks/compared.py RESULTS                    RESULTS has compare.json
    python benchmarks/compared.py RESULTS --peers TABLE      with benchmarks/peers/kuairand.json
    python benchmarks/compared.py RESULTS --cost             NE and cost beside the first
    python benchmarks/compared.py RESULTS --tuning           validation NE of every trial

Mean over seeds, ± the deviation between them (of samples/s, between rounds of steps); NE and its
95 % interval are differences from the first model on the same test rows (paired bootstrap, and
Student's t over seeds).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kunlun.report.comparison import settings

PEERS = Path(__file__).parent / "peers" / "kuairand.json"


def quality(report: dict[str, Any], peers: list[dict[str, Any]]) -> list[list[str]]:
    """One row a model, log-loss and AUC of every task; peers behind them."""
    tasks, seeds = report["tasks"], len(report["seeds"])
    rows = [
        ["model", *(f"{t} {m}" for t in tasks for m in ("log-loss", "AUC", "NE from the first"))]
    ]
    for model in report["models"]:
        row = [model["name"]]
        for task in tasks:
            own = model["test"].get(task, {})
            row += [_spread(own.get("logloss")), _spread(own.get("auc"))]
            row.append(_difference(model["against_first"].get(task, {}).get("ne"), seeds))
        rows.append(row)
    for peer in peers:
        row = [f"{peer['name']} ({peer['seeds']} seeds)"]
        for task in tasks:
            sd = "" if peer[task]["sd"] is None else f" ± {peer[task]['sd']:.4f}"
            row += [f"{peer[task]['logloss']:.4f}{sd}", f"{peer[task]['auc']:.4f}", "-"]
        rows.append(row)
    return rows


def cost(report: dict[str, Any]) -> list[list[str]]:
    """One row a variant: difference in NE by task, and cost as multiples of the first. Where the
    true probabilities are known, expected NE (labels replaced by them) and what they reach."""
    tasks, first, seeds = report["tasks"], report["models"][0], len(report["seeds"])
    floors = {
        t: floor for t in tasks
        if (floor := first["test"].get(t, {}).get("floor_ne", {}).get("mean")) is not None
    }  # fmt: skip
    rows = [["variant", *(f"NE of {t}" for t in tasks), *(f"expected NE of {t}" for t in floors),
             "parameters without tables", "FLOPs", "samples/s", "MFU"]]  # fmt: skip
    for model in report["models"]:
        found = [_difference(model["against_first"].get(t, {}).get("ne"), seeds) for t in tasks]
        if model is first:
            means = [first["test"].get(t, {}).get("ne", {}).get("mean") for t in tasks]
            found = ["-" if mean is None else f"{mean:.4f}" for mean in means]
        mfu = model["step_mfu"]["mean"]
        rows.append([
            model["name"], *found,
            *(_spread(model["test"].get(t, {}).get("expected_ne")) for t in floors),
            f"{model['dense_params']:,}",
            f"x {model['flops_per_sample'] / first['flops_per_sample']:.2f}",
            "x 1.00" if model is first else f"x {_spread(model['times_first'], 2)}",
            "-" if mfu is None else f"{100 * mfu:.1f} %",
        ])  # fmt: skip
    if floors:
        truth = [f"{floor:.4f}" for floor in floors.values()]
        rows.append(["the true probabilities", *["-"] * len(tasks), *truth, *["-"] * 4])
    return rows


def tuning(report: dict[str, Any]) -> list[list[str]]:
    """One row a model; the chosen trial in bold."""
    found = report["tuning"]
    every = [
        {json.dumps(t["changes"]): t["changes"] for t in own["trials"]} for own in found.values()
    ]
    if any(list(trials) != list(every[0]) for trials in every):  # lists of their own
        heads = [f"trial {n}" for n in range(1, len(every[0]) + 1)]
    else:
        heads = [settings(changes) for changes in every[0].values()]
    rows = [["model", *heads]]
    for name, own in found.items():
        row = [name]
        for trial in own["trials"]:
            ne = "-" if trial["valid_ne"] is None else f"{trial['valid_ne']:.4f}"
            row.append(f"**{ne}**" if trial["number"] == own["chosen"] else ne)
        rows.append(row)
    return rows


def _spread(value: dict[str, Any] | None, digits: int = 4) -> str:
    if value is None or value["mean"] is None:
        return "-"
    sd = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{sd}"


def _difference(value: dict[str, Any] | None, seeds: int) -> str:
    if value is None:
        return "-"
    few = "" if value["seeds"] == seeds else f", {value['seeds']} of {seeds} seeds"
    return f"{value['difference']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f}{few})"


def render(rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    )


def note(report: dict[str, Any]) -> str:
    """What must be said under a table of one seed."""
    if len(report["seeds"]) > 1:
        return ""
    return "\n\nOne seed: intervals are of the test rows alone, without the noise of training."


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder with compare.json")
    parser.add_argument("--peers", help="feature table of the peers to show")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--cost", action="store_true")
    shown.add_argument("--tuning", action="store_true")
    args = parser.parse_args()
    if args.peers and (args.cost or args.tuning):
        parser.error("--peers are shown beside quality; leave out --cost and --tuning")
    report = json.loads((args.results / "compare.json").read_text())
    peers = json.loads(PEERS.read_text())["tables"][args.peers] if args.peers else []
    if args.cost:
        print(render(cost(report)) + note(report))
    elif args.tuning:
        print(render(tuning(report)))
    else:
        print(render(quality(report, peers)) + note(report))


if __name__ == "__main__":
    main()
