"""Figures of `kunlun compare`, as SVG text for a page; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from typing import Any

# Paul Tol's muted colours, distinguishable in grey and to the colour-blind.
COLOURS = (
    "#332288", "#cc6677", "#117733", "#ddaa33", "#88ccee", "#aa4499", "#44aa99", "#882255",
    "#999933",
)  # fmt: skip
MARKERS = "osD^vP*X<>"


def style(place: int) -> dict[str, Any]:
    """Colour and marker of a model by its place; no two of the first ninety are alike."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def draw_curves(report: dict[str, Any]) -> str:
    """A row of axes a task: test NE against forward FLOPs per sample (bars: deviation over seeds),
    validation NE against training FLOPs so far, and against seconds (a line a seed)."""
    tasks = report["tasks"]
    figure = _figure(13.5, 3.6 * len(tasks) + 0.9)
    grid = figure.subplots(len(tasks), 3, squeeze=False)
    handles: dict[str, Any] = {}
    for row, task in zip(grid, tasks, strict=True):
        for place, model in enumerate(report["models"]):
            _final(row[0], model, task, style(place))
            for x, axes in (("flops", row[1]), ("seconds", row[2])):
                handles |= _curves(axes, model, task, x, style(place))
        row[0].set_ylabel(f"{task}: NE")
        titles = ("test NE against size", "validation NE against compute",
                  "validation NE against time")  # fmt: skip
        labels = ("forward FLOPs a sample", "training FLOPs so far", "training seconds so far")
        for axes, title, label in zip(row, titles, labels, strict=True):
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(label)
            axes.grid(True, which="both", color="#e5e5e5")
            axes.set_axisbelow(True)
        models = report["models"]
        points = [p for m in models for curve in m["curves"] for p in curve["points"]]
        _compute_axis(row[0], [m["flops_per_sample"] for m in models])
        _compute_axis(row[1], [p["flops"] for p in points])
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center",
            ncols=min(len(handles), 8), frameon=False,
        )  # fmt: skip
    return _svg(figure)


def draw_differences(report: dict[str, Any]) -> str:
    """Axes a task: NE of every model minus the first's, with 95 % intervals."""
    first, *rest = report["models"]
    tasks = report["tasks"]
    figure = _figure(6.5 * len(tasks), 0.32 * len(rest) + 1.5)
    grid = figure.subplots(1, len(tasks), squeeze=False, sharey=True)
    for axes, task in zip(grid[0], tasks, strict=True):
        for place, model in enumerate(rest, start=1):
            found = (model["against_first"].get(task) or {}).get("ne")
            if found is not None:
                here, low, high = (found[k] for k in ("difference", "low", "high"))
                # the ends are quantiles, and may lie on one side of the difference
                bars = [[max(here - low, 0.0)], [max(high - here, 0.0)]]
                axes.errorbar([here], [place], xerr=bars, capsize=3, **style(place))
        axes.axvline(0, color="#555555", linewidth=1)
        axes.set_ylim(len(rest) + 0.6, 0.4)
        axes.set_yticks(range(1, len(rest) + 1), [model["name"] for model in rest])
        axes.set_xlabel(f"NE minus that of {first['name']} (left: better)")
        axes.set_title(task, fontsize=10)
        axes.grid(True, axis="x", color="#e5e5e5")
        axes.set_axisbelow(True)
    return _svg(figure)


def _final(axes: Any, model: dict[str, Any], task: str, how: dict[str, Any]) -> None:
    ne = model["test"].get(task, {}).get("ne")
    if ne is not None and ne["mean"] is not None:
        axes.errorbar(
            [model["flops_per_sample"]], [ne["mean"]], yerr=[ne["sd"] or 0.0], capsize=3, **how
        )


def _curves(
    axes: Any, model: dict[str, Any], task: str, x: str, how: dict[str, Any]
) -> dict[str, Any]:
    """Lines of all seeds; returns the name -> a handle for the legend."""
    handles = {}
    for curve in model["curves"]:
        points = [(p[x], p["ne"][task]) for p in curve["points"] if p["ne"].get(task) is not None]
        if points:
            (handles[model["name"]],) = axes.plot(
                *zip(*points, strict=True), markersize=4, linewidth=1.2, **how
            )
    return handles


def _compute_axis(axes: Any, values: list[float]) -> None:
    """Logarithmic, or linear where less than a decade would leave no power of ten to label."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    low, high = min(values, default=0.0), max(values, default=0.0)
    if low > 0 and high / low > 8:
        axes.set_xscale("log")
    else:
        axes.set_xlim(low * 0.9, high * 1.1 or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter())


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Any) -> str:
    """The <svg> element alone, with text as outlines, so that it looks alike everywhere."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "kunlun", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
