"""Figures are drawn from a report alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from kunlun.report.figures import _shares, draw_operators

WAY = {"ms": 1.0, "roof_share": 0.5}
REPORT = {
    "conditions": {
        "cpu": "a CPU", "device": "cpu", "threads": 1, "packages": {"torch": "2"},
    },
    "cases": [
        {
            "operator": operator, "dtype": "float32", "shape": shape,
            "ways": [
                {"way": "native", "forward": WAY, "both": WAY},
                {"way": "flex", "forward": WAY},
                {"way": "sdpa", "skipped": "for a reason"},
            ],
        }
        for operator in ("gdpa", "rotary") for shape in "AB"
    ],
    "sweep": [
        {
            "operator": "gdpa", "dtype": "float32", "length": n,
            "ways": [{"way": "native", "both": WAY}],
        }
        for n in (64, 128)
    ],
}  # fmt: skip


@pytest.mark.parametrize("sweep", [True, False])
def test_figure_is_written(sweep: bool, tmp_path: Path) -> None:
    report: dict[str, Any] = {**REPORT, "sweep": REPORT["sweep"] if sweep else []}
    draw_operators(report, tmp_path / "ops.png")
    assert (tmp_path / "ops.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "ops.png").stat().st_size > 10_000


def test_a_bar_above_the_roof_is_not_cut() -> None:
    """A library may multiply faster than the product that the roof was measured with."""
    axes = Figure().subplots()
    fast = {"shape": "A", "ways": [{"way": "native", "both": {"ms": 1.0, "roof_share": 1.7}}]}
    _shares(axes, [fast])
    assert axes.get_ylim()[1] > 1.7
    _shares(axes, [case for case in REPORT["cases"] if case["operator"] == "gdpa"])
    assert axes.get_ylim()[1] == 1
