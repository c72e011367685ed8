"""The report of `kunlun compare` as text: tables for a terminal or Markdown, and one HTML page."""

from __future__ import annotations

import json
from html import escape
from typing import Any, NamedTuple

from kunlun.report.comparison_figures import draw_curves, draw_differences
from kunlun.report.table import table

QUALITY = {
    "ne": "NE", "auc": "AUC", "gauc": "GAUC", "logloss": "log-loss", "calibration": "p/y",
}  # fmt: skip


class Table(NamedTuple):
    """A title, column names, rows of text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(report: dict[str, Any]) -> list[Table]:
    """Quality by task, cost, and differences from the first model."""
    models, tasks = report["models"], report["tasks"]
    quality = {**QUALITY, **({"expected_ne": "expected NE"} if _floors(report) else {})}
    found = [
        Table(
            "Quality on the test split, mean ± standard deviation over seeds",
            ["model", "task", *quality.values(), "validation NE"],
            [
                [m["name"], task,
                 *(_spread(m["test"].get(task, {}).get(key), 4) for key in quality),
                 _spread(m["valid"].get(task, {}).get("ne"), 4)]
                for task in tasks for m in models
            ],
        ),
        Table(
            "Cost; of single steps, measured side by side, and of the training runs",
            ["model", "parameters", "without tables", "FLOPs/sample", "steps: samples/s", "MFU",
             "runs: samples/s", "MFU", "peak memory", "seconds"],
            [
                [m["name"], f"{m['params']:,}", f"{m['dense_params']:,}",
                 scaled(m["flops_per_sample"]), _spread(m["step_samples_per_s"], 0),
                 _spread(m["step_mfu"], 1, 100, " %"), _spread(m["samples_per_s"], 0),
                 _spread(m["mfu"], 1, 100, " %"), _spread(m["peak_memory"], 2, 2**-30, " GiB"),
                 _spread(m["seconds"], 0)]
                for m in models
            ],
        ),
    ]  # fmt: skip
    if len(models) > 1:
        seeds = len(report["seeds"])
        rows = [_against(models[0], m, task, seeds) for task in tasks for m in models[1:]]
        header = ["model", "task", "NE", "95 % interval", "NE is", "AUC", "95 % interval", "AUC is",
                  "FLOPs", "samples/s", "MFU"]  # fmt: skip
        found.append(Table(f"Difference from {models[0]['name']}", header, rows))
    if report.get("tuning"):
        found.append(_tuning(report["tuning"]))
    return found


def notes(report: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know."""
    seeds = len(report["seeds"])
    found = [
        f"Seeds {', '.join(map(str, report['seeds']))}; data {report['config']['data']} "
        f"({', '.join(f'{name} {rows:,}' for name, rows in report['data'].items())} rows).",
        "Intervals: paired bootstrap of the test rows by group"
        + (f", and Student's t over {seeds} seeds." if seeds > 1 else
           "; one seed, so the noise of training is not in them."),
        "FLOPs are of the forward pass, matrix products only, at the lengths of the training data.",
    ]  # fmt: skip
    if report.get("tuning"):
        found.append(
            "Every model had the same number of trials with the first seed, judged on validation "
            "alone; the best of each is what the other tables show."
        )
        for name, own in report["tuning"].items():
            found += [
                f"{name}, trial {t['number']} diverged: {t['failed']}"
                for t in own["trials"]
                if t["failed"] is not None
            ]
    own = report["config"]["train"]["batch_size"]
    if len({m["changed"].get("train.batch_size", own) for m in report["models"]}) > 1:
        found.append(
            f"Models differ in train.batch_size; their steps were timed with {own} samples each, "
            "as configured, their runs with their own."
        )
    if report.get("jobs", 1) > 1:
        found.append(
            f"Runs were trained {report['jobs']} at a time, so their samples/s, MFU and seconds "
            "shared the machine; steps were measured afterwards with the machine to themselves."
        )
    steps = _machine(report["machine"])
    runs = dict.fromkeys(map(_machine, report["run_machines"]))
    if list(runs) != [steps]:
        found.append(f"Steps were timed on {steps}. Runs were trained on {'; '.join(runs)}.")
    found += [
        f"The truth is known: expected NE of {task}, with each label replaced by its true "
        f"probability, cannot be below {floor:.4f}."
        for task, floor in _floors(report).items()
    ]
    if report["match"] is not None:
        match = report["match"]
        found.append(
            f"Sizes were chosen so that {match['what']} are within {match['tolerance']:.0%} of "
            f"{match['budget']:.4g}."
        )
    for model in report["models"]:
        found += [f"{model['name']} diverged: {reason}" for reason in model["failed"]]
    found += [f"{name} is left out: {why}." for name, why in report.get("left_out", {}).items()]
    return found


def markdown(report: dict[str, Any]) -> str:
    """Tables and notes as Markdown."""
    parts = []
    for title, header, rows in tables(report):
        lines = [header, ["---"] * len(header), *rows]
        parts += [f"{title}:", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(report))]) + "\n"


def text(report: dict[str, Any]) -> str:
    """Tables and notes for a terminal."""
    parts = []
    for title, header, rows in tables(report):
        parts.append(f"{title}\n{table(header, rows)}")
    return "\n\n".join([*parts, "\n".join(notes(report))])


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
       color: #222; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5em 0 1.5em }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left }
figure { margin: 1em 0; overflow-x: auto } figure svg { max-width: 100%; height: auto }
pre { background: #f6f6f6; padding: .8em; overflow-x: auto } .wide { overflow-x: auto }
"""


def page(report: dict[str, Any]) -> str:
    """One HTML page that needs nothing else: tables, figures, notes, configurations."""
    name = f"{report['config']['name']}: {', '.join(m['name'] for m in report['models'])}"
    parts = [f"<h1>{escape(name)}</h1>"]
    for title, header, rows in tables(report):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        parts.append(f"<h2>{escape(title)}</h2><div class='wide'><table><tr>{head}</tr>{body}")
        parts.append("</table></div>")
    parts.append("<h2>NE against compute and time</h2>")
    parts.append(f"<figure>{draw_curves(report)}</figure>")
    if len(report["models"]) > 1:
        parts.append(f"<figure>{draw_differences(report)}</figure>")
    parts.append("<h2>Notes</h2><ul>")
    parts += [f"<li>{escape(note)}</li>" for note in notes(report)]
    parts.append(f"<li>{escape(_machine(report['machine']))}</li></ul>")
    for name, own in (report.get("tuning") or {}).items():
        lines = "\n".join(f"{t['number']}: {settings(t['changes'])}" for t in own["trials"])
        parts.append(
            f"<details><summary>trials of {escape(name)}</summary><pre>{escape(lines)}</pre>"
            "</details>"
        )
    for model in report["models"]:
        changed = json.dumps(model["changed"], indent=1) if model["changed"] else "as configured"
        parts.append(
            f"<details><summary>{escape(model['name'])} ({escape(model['model'])})</summary>"
            f"<pre>{escape(changed)}</pre></details>"
        )
    parts.append(
        "<details><summary>configuration</summary>"
        f"<pre>{escape(json.dumps(report['config'], indent=1))}</pre></details>"
    )
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(name)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def scaled(value: float) -> str:
    """1.25 M, 3.10 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def settings(changes: dict[str, Any]) -> str:
    """Keys as overrides take them."""
    pairs = (f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in changes.items())
    return " ".join(pairs) or "as configured"


def _machine(about: dict[str, Any]) -> str:
    return (
        f"{about['cpu']}, device {about['device']}, {about['threads']} thread(s), "
        f"torch {about['packages']['torch']}"
    )


def _tuning(tuning: dict[str, Any]) -> Table:
    """A row a model: its trials in the order of the file, and what the chosen one changes."""
    each = max(len(own["trials"]) for own in tuning.values())
    header = ["model", "trials", *(f"NE of {n}" for n in range(1, each + 1)), "chosen", "changes"]
    rows = []
    for name, own in tuning.items():
        found = ["-" if t["valid_ne"] is None else f"{t['valid_ne']:.4f}" for t in own["trials"]]
        chosen = next(t for t in own["trials"] if t["number"] == own["chosen"])
        rows.append(
            [name, str(len(found)), *found, str(own["chosen"]), settings(chosen["changes"])]
        )
    return Table("Tuning: validation NE of every trial, mean over tasks", header, rows)


def _spread(value: dict[str, Any] | None, digits: int, factor: float = 1, unit: str = "") -> str:
    if value is None or value["mean"] is None:
        return "-"
    mean = f"{value['mean'] * factor:,.{digits}f}"
    sd = "" if value["sd"] is None else f" ± {value['sd'] * factor:,.{digits}f}"
    return f"{mean}{sd}{unit}"


def _floors(report: dict[str, Any]) -> dict[str, float]:
    """Task -> expected NE of the true probabilities on the test split, where these are known."""
    known = {}
    for task in report["tasks"]:
        for model in report["models"]:
            floor = model["test"].get(task, {}).get("floor_ne", {}).get("mean")
            if floor is not None:
                known[task] = floor
    return known


def _against(first: dict[str, Any], model: dict[str, Any], task: str, seeds: int) -> list[str]:
    found = model["against_first"].get(task, {})
    row = [model["name"], task]
    for metric, sign in (("ne", -1), ("auc", 1)):
        row += _difference(found.get(metric), sign, seeds)
    row.append(f"x {model['flops_per_sample'] / max(first['flops_per_sample'], 1):.2f}")
    row.append(f"x {_spread(model['times_first'], 3)}")
    mfu = [m["step_mfu"]["mean"] for m in (first, model)]
    row.append(f"{(mfu[1] - mfu[0]) * 100:+.1f} points")
    return row


def _difference(found: dict[str, Any] | None, sign: int, seeds: int) -> list[str]:
    """sign: of a difference that is an improvement. seeds: those of the study."""
    if found is None:
        return ["-", "-", "-"]
    low, high = found["low"], found["high"]
    verdict = "within noise"
    if low > 0 or high < 0:
        verdict = "better" if (low > 0) == (sign > 0) else "worse"
        if found["seeds"] == 1 < seeds:  # its interval lacks the noise that the others' have
            verdict = "one seed"
    few = "" if found["seeds"] == seeds else f" ({found['seeds']} of {seeds} seeds)"
    return [f"{found['difference']:+.5f}", f"{low:+.5f} to {high:+.5f}{few}", verdict]
