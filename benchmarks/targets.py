"""What was asked of the CPU operators, and what a file of `kunlun bench ops` has.

    python benchmarks/targets.py benchmarks/results/ops.json

Pairs are forward / forward with backward, single figures forward with backward. What has no row in
the file is left out: padded, for one, is not run where its scores exceed 2 GiB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSES = ("forward", "both")
Found = dict[str, tuple[float | None, float | None]]  # shape -> figure of each pass
Pair = tuple[float, float]


@dataclass(frozen=True)
class Target:
    """asked: shape -> least figure of (forward, forward with backward), 0 for none; most: it is the
    greatest instead."""

    name: str
    asked: dict[str, Pair]
    measure: Callable[[dict[str, Any], str], tuple[float | None, float | None]]
    unit: str = " %"
    digits: int = 1
    most: bool = False


def share(operator: str, way: str, dtype: str = "float32") -> Callable[..., Any]:
    """Percent of the matrix product's peak."""

    def measure(report: dict[str, Any], shape: str) -> tuple[float | None, float | None]:
        found = _ways(report["cases"], operator, dtype, shape=shape).get(way)
        first, second = (_of(found, p, "gemm_share") for p in PASSES)
        return _percent(first), _percent(second)

    return measure


def over(operator: str, way: str, other: str, dtype: str = "float32") -> Callable[..., Any]:
    """How many times longer another way takes."""

    def measure(report: dict[str, Any], shape: str) -> tuple[float | None, float | None]:
        key: dict[str, Any] = {"shape": shape}
        cases = report["cases"]
        if shape.isdigit():
            cases, key = report["sweep"], {"length": int(shape)}
        ways = _ways(cases, operator, dtype, **key)
        own, theirs = ways.get(way), ways.get(other)
        pairs = [(_of(own, p, "ms"), _of(theirs, p, "ms")) for p in PASSES]
        first, second = (t / o if o and t else None for o, t in pairs)
        return first, second

    return measure


def threads(operator: str) -> Callable[..., Any]:
    """Wall time of one thread over that of two, forward with backward."""

    def measure(report: dict[str, Any], shape: str) -> tuple[float | None, float | None]:
        rows = [r for r in report["threads"] if (r["operator"], r["shape"]) == (operator, shape)]
        return None, rows[0]["speed_up"] if rows else None

    return measure


def exponent(operator: str, way: str) -> Callable[..., Any]:
    """The power of the length that time grows with, over the sweep without its shortest length."""

    def measure(report: dict[str, Any], shape: str) -> tuple[float | None, float | None]:
        rows = {
            r["pass"]: r["exponent"]
            for r in report["exponents"]
            if (r["operator"], r["way"]) == (operator, way)
        }
        return rows.get("forward"), rows.get("both")

    return measure


def _all(forward: float, both: float, shapes: str) -> dict[str, Pair]:
    return dict.fromkeys(shapes, (forward, both))


DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("gdpa", "window_attention", "seed_attention")
TARGETS = [
    Target("gdpa native, float32: share of GEMM peak", {"A": (45, 50), **_all(80, 65, "BCD")},
           share("gdpa", "native")),
    Target("gdpa native, bfloat16: share", {"A": (45, 50), **_all(55, 65, "BCD")},
           share("gdpa", "native", "bfloat16")),
    Target("gdpa portable, float32: share", _all(30, 30, "BCD"), share("gdpa", "portable")),
    Target("window_attention native, float32: share", _all(55, 55, "ABCD"),
           share("window_attention", "native")),
    Target("window_attention portable, float32: share", _all(25, 25, "ABCD"),
           share("window_attention", "portable")),
    Target("seed_attention native, float32: share", {"A": (35, 35), **_all(60, 60, "BCD")},
           share("seed_attention", "native")),
    *(
        Target(f"{name} native over padded, {dtype}: times as fast",
               {"A": (0, 3.5), "B": (0, 5), "C": (0, 5), "D": (0, 3.5)},
               over(name, "native", "padded", dtype), " x")
        for name in ATTENTIONS for dtype in DTYPES
    ),
    *(
        Target(f"{name} portable over padded, {dtype}: times as fast", _all(0, 2.5, "BCD"),
               over(name, "portable", "padded", dtype), " x")
        for name in ATTENTIONS for dtype in DTYPES
    ),
    Target("window_attention native over masked SDPA, 2048 rows", {"2048": (8, 8)},
           over("window_attention", "native", "sdpa"), " x"),
    Target("window_attention portable over masked SDPA, 2048 rows", {"2048": (4, 4)},
           over("window_attention", "portable", "sdpa"), " x"),
    *(
        Target(f"window_attention {way}: exponent of time in length, at most",
               {"512 to 4096": (1.1, 1.1)}, exponent("window_attention", way), "", 2, most=True)
        for way in ("native", "portable")
    ),
    *(
        Target(f"{name}: two threads over one", _all(0, 1.7, "BCD"), threads(name), " x", 2)
        for name in (*ATTENTIONS, "sum_kron", "rotary")
    ),
]  # fmt: skip


def table(report: dict[str, Any]) -> list[list[str]]:
    """One row a target."""
    rows = [["target", "asked", "measured", "missed"]]
    for target in TARGETS:
        found = {shape: target.measure(report, shape) for shape in target.asked}
        found = {shape: pair for shape, pair in found.items() if pair != (None, None)}
        if not found:
            continue
        asked = ", ".join(_asked(target, found))
        measured = ", ".join(
            f"{shape} {_pair(pair, target.asked[shape], target)}" for shape, pair in found.items()
        )
        missed = [s for s, pair in found.items() if _misses(pair, target.asked[s], target.most)]
        rows.append([target.name, asked, measured, ", ".join(missed) or "-"])
    return rows


def _asked(target: Target, found: Found) -> list[str]:
    groups: dict[Pair, list[str]] = {}
    for shape in found:
        groups.setdefault(target.asked[shape], []).append(shape)
    return [f"{_pair(pair, pair, target)} ({' '.join(own)})" for pair, own in groups.items()]


def _pair(figures: tuple[float | None, float | None], asked: Pair, target: Target) -> str:
    shown = [
        "-" if f is None else f"{f:.{target.digits}f}"
        for f, least in zip(figures, asked, strict=True)
        if least > 0
    ]
    return " / ".join(shown) + target.unit


def _misses(figures: tuple[float | None, float | None], asked: Pair, most: bool) -> bool:
    known = [(f, a) for f, a in zip(figures, asked, strict=True) if f is not None and a > 0]
    return any(f > a if most else f < a for f, a in known)


def _ways(
    cases: list[dict[str, Any]], operator: str, dtype: str, **key: Any
) -> dict[str, dict[str, Any]]:
    wanted = {"operator": operator, "dtype": dtype, **key}
    for case in cases:
        if all(case.get(name) == value for name, value in wanted.items()):
            return {way["way"]: way for way in case["ways"]}
    return {}


def _of(way: dict[str, Any] | None, part: str, key: str) -> float | None:
    return None if way is None else way.get(part, {}).get(key)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="an ops.json")
    rows = table(json.loads(parser.parse_args().report.read_text()))
    for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
