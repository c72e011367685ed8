"""Reports as Markdown tables, for README and docs; no number of theirs is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OURS = ("native", "triton", "portable")
OTHERS = ("portable", "padded", "sdpa", "flex", "flash_attn")


def ops_table(
    report: dict[str, Any],
    only: Sequence[str] = (),
    shapes: Sequence[str] = (),
    dtypes: Sequence[str] = (),
) -> str:
    """One line an operator, shape and dtype (of those named, if any are): the fastest backend of
    ours, then how many times longer the others take. Pairs are forward / forward with backward."""
    lines = [
        "| operator | shape | dtype | backend | ms | GFLOP/s | share of GEMM peak "
        "| share of the lower roof | MB (least) | " + " | ".join(f"{o} x" for o in OTHERS) + " |",
        "|---" * (9 + len(OTHERS)) + "|",
    ]
    for case in report["cases"]:
        ways = {way["way"]: way for way in case["ways"] if "forward" in way}
        own = next((ways[name] for name in OURS if name in ways), None)
        named = ((only, "operator"), (shapes, "shape"), (dtypes, "dtype"))
        if own is None or any(names and case[key] not in names for names, key in named):
            continue
        first, both = own["forward"], own["both"]
        counted = case["forward_flops"] > 0
        peak = "-" if own["peak_mb"] is None else f"{own['peak_mb']:.0f}"
        cells = [
            *(case["operator"], case["shape"], case["dtype"], own["way"]),
            f"{first['ms']:.1f} / {both['ms']:.1f}",
            f"{first['gflops']:.0f} / {both['gflops']:.0f}" if counted else "-",
            f"{first['gemm_share']:.0%} / {both['gemm_share']:.0%}" if counted else "-",
            _roofs(first, both),
            f"{peak} ({case['both_least_mb']:.0f})",
            *(_ratios(own, ways.get(name)) for name in OTHERS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", " ".join(_notes(report))])


def _roofs(first: dict[str, Any], both: dict[str, Any]) -> str:
    """Shares of the lower roof; a forward and a backward may be bound by different ones."""
    if first["roof"] == both["roof"]:
        return f"{first['roof_share']:.0%} / {both['roof_share']:.0%} ({both['roof']})"
    return " / ".join(f"{x['roof_share']:.0%} {x['roof']}" for x in (first, both))


def _ratios(own: dict[str, Any], other: dict[str, Any] | None) -> str:
    if other is None or other is own:
        return "-"
    ratios = [
        f"{other[what]['ms'] / own[what]['ms']:.1f}"
        for what in ("forward", "both")
        if what in other
    ]
    return " / ".join(ratios)


def model_table(report: dict[str, Any]) -> str:
    """One line a setting and way of training, then what the modules predict."""
    lines = [
        "| histories | precision | training | samples/s | step ms | peak MB "
        "| speed-up over padded | predicted | reached |",
        "|---" * 9 + "|",
    ]
    for setting in report["settings"]:
        over = {s["of"]: s for s in setting["speed_ups"] if s["over"] == "padded"}
        for row in setting["ways"]:
            gain = over.get(row["way"])
            histories = (
                f"{setting['setting']}: {setting['rows']} rows, mean {setting['mean']}, "
                f"up to {setting['longest']}"
            )
            if "skipped" in row:
                cells = [histories, setting["precision"], row["way"], row["skipped"], *["-"] * 5]
                lines.append(f"| {' | '.join(cells)} |")
                continue
            peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
            cells = [
                *(histories, setting["precision"], row["way"], f"{row['samples_per_s']:.1f}"),
                *(f"{row['step_ms']:.0f}", peak),
                *(["-"] * 3 if gain is None else _gain(gain)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| histories | speed-up | module | share of the slower step | ratio |"]
    lines.append("|---" * 5 + "|")
    for setting in report["settings"]:
        for gain in setting["speed_ups"]:
            for kind, part in gain["modules"].items():
                lines.append(
                    f"| {setting['setting']} | {gain['of']} over {gain['over']}: "
                    f"{' / '.join(_gain(gain))} | {kind} | {part['share']:.0%} "
                    f"| {part['ratio']:.2f} |"
                )
    return "\n".join([*lines, "", _machine(report)])


def _gain(gain: dict[str, Any]) -> list[str]:
    return [f"{gain['measured']:.2f}", f"{gain['predicted']:.2f}", f"{gain['reached']:.0%}"]


def _notes(report: dict[str, Any]) -> list[str]:
    slopes = [
        f"{e['operator']} {e['exponent']:.2f}"
        for e in report["exponents"]
        if e["pass"] == "both" and e["way"] == _first_way(report)
    ]
    threads = [
        f"{t['operator']} {t['shape']} {t['speed_up']:.2f}"
        for t in report["threads"]
        if "speed_up" in t
    ]
    found = [_machine(report)]
    if slopes:
        found.append(f"Time grows with length to the power of: {', '.join(slopes)}.")
    if threads:
        found.append(f"Two threads over one: {', '.join(threads)}.")
    return found


def _machine(report: dict[str, Any]) -> str:
    about = report["conditions"]
    return (
        f"{about['cpu'] if about['device'] == 'cpu' else about['device']}, {about['threads']} "
        f"thread(s), torch {about['packages']['torch']}, native library {about['native']}, "
        f"{about['clock']} time, load {about['load']} to {about['load_after']}; the allocator "
        f"{'keeps' if about['allocator']['keeps_freed_memory'] else 'returns'} freed memory."
    )


def _first_way(report: dict[str, Any]) -> str:
    ways = {way["way"] for case in report["cases"] for way in case["ways"] if "forward" in way}
    return next((name for name in OURS if name in ways), "")
