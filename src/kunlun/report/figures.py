"""Figures from reports, as PNG files. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

# Paul Tol's bright colours, distinguishable in grey and to the colour-blind.
COLOURS = {
    "native": "#4477aa", "portable": "#66ccee", "triton": "#228833", "padded": "#bbbbbb",
    "sdpa": "#ee6677", "flex": "#ccbb44", "flash_attn": "#aa3377",
}  # fmt: skip
COLUMNS = 5
MARKERS = {"native": "o", "portable": "s", "triton": "D", "padded": "x", "sdpa": "^", "flex": "v"}


def draw_operators(report: dict[str, Any], file: Path) -> None:
    """The report of `kunlun bench ops`: an operator's shares of the binding roof as bars (forward +
    backward, forward where there is no more), dtype by dtype, and below them time against sequence
    length with both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases, sweep = report["cases"], report["sweep"]
    # what to draw, its label, and the cases of each panel of a line of them
    lines: list[tuple[Callable[..., dict[str, Any]], str, list[list[dict[str, Any]]]]] = []
    for dtype in dict.fromkeys(case["dtype"] for case in cases):
        of_dtype = [case for case in cases if case["dtype"] == dtype]
        lines += [(_shares, "share of the roof", part) for part in _by_operator(of_dtype)]
    lines += [(_times, "ms, forward + backward", part) for part in _by_operator(sweep)]
    columns = max(len(panels) for _, _, panels in lines)
    figure = Figure(figsize=(3.4 * columns + 1, 2.7 * len(lines) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(lines), columns, squeeze=False)
    shown: dict[str, Any] = {}
    for axes, (draw, label, panels) in zip(grid, lines, strict=True):
        axes[0].set_ylabel(label)
        for panel, own in zip(axes, panels, strict=False):
            shown |= draw(panel, own)
            panel.set_title(f"{own[0]['operator']}, {own[0]['dtype']}", fontsize=10)
        for empty in axes[len(panels) :]:
            empty.set_axis_off()
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(COLOURS))
    about = report["conditions"]
    figure.suptitle(
        f"{about['cpu'] if about['device'] == 'cpu' else about['device']}, {about['threads']} "
        f"thread(s), torch {about['packages']['torch']}: forward + backward (flex: forward), share "
        "of the lower roof (matrix product or copy of the same process)",
        fontsize=10,
    )
    figure.savefig(file, dpi=110)


def _by_operator(cases: list[dict[str, Any]]) -> list[list[list[dict[str, Any]]]]:
    """Lines of at most COLUMNS panels, each the cases of one operator."""
    operators = dict.fromkeys(case["operator"] for case in cases)
    panels = [[case for case in cases if case["operator"] == name] for name in operators]
    return [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]


def _best(way: dict[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = way.get("both", way.get("forward"))
    return found


def _shares(axes: Any, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Bars, one group a shape; returns name -> handle for the legend."""
    ways = [w for w in COLOURS if any(v["way"] == w and _best(v) for c in cases for v in c["ways"])]
    width, handles, tallest = 0.8 / max(len(ways), 1), {}, 1.0
    for place, name in enumerate(ways):
        at, heights = [], []
        for group, case in enumerate(cases):
            for way in case["ways"]:
                figures = _best(way)
                if way["way"] == name and figures is not None:
                    at.append(group + (place - (len(ways) - 1) / 2) * width)
                    heights.append(figures["roof_share"])
        handles[name] = axes.bar(at, heights, width, color=COLOURS[name])
        tallest = max(tallest, *heights)
    axes.set_xticks(range(len(cases)), [case["shape"] for case in cases])
    axes.set_ylim(0, tallest if tallest == 1 else 1.05 * tallest)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.yaxis.grid(True, color="#dddddd")
    axes.set_axisbelow(True)
    return handles


def _times(axes: Any, sweep: list[dict[str, Any]]) -> dict[str, Any]:
    """Lines of time against length; returns name -> handle for the legend."""
    handles = {}
    for name, colour in COLOURS.items():
        points = [
            (case["length"], figures["ms"])
            for case in sweep
            for way in case["ways"]
            if way["way"] == name and (figures := _best(way)) is not None
        ]
        if points:
            rows, times = zip(*points, strict=True)
            (handles[name],) = axes.plot(
                rows, times, color=colour, marker=MARKERS.get(name, "."), markersize=4
            )
    if not handles:
        axes.set_axis_off()
        return handles
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({case["length"] for case in sweep})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlabel("rows of each of 4 sequences")
    axes.grid(True, color="#dddddd")
    return handles
