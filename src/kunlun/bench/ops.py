"""`kunlun bench ops`: every operator at every shape, verified, then timed beside what it replaces.

A case's runs take turns (see clock.interleaved), the square product and the copy that make the
roofs among them. A result that is off is never timed: WrongResultError stops the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kunlun.bench import cases, clock
from kunlun.bench.shapes import DEFAULT, SHAPES, SWEEP, swept
from kunlun.errors import BackendError, ConfigError, NumericsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest value
SWEPT = ("gdpa", "window_attention", "seed_attention")
THREADED = ("B", "C", "D")
Say = Callable[[str], None]


class WrongResultError(NumericsError):
    """An operator whose result or gradient is not that of its float64 reference."""


def bench_ops(
    *,
    only: Sequence[str] = cases.OPERATORS,
    shapes: Sequence[str] = DEFAULT,
    dtypes: Sequence[str] = tuple(DTYPES),
    threads: int = 1,
    device: str = "cpu",
    ways: Sequence[str] = cases.WAYS,
    budget: float = 0.3,
    sweep: Sequence[int] = SWEEP,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """The report, ready for JSON (docs/benchmarks.md says what each key means).

    budget: seconds a run is repeated for, beyond its first 3 repeats. sweep: rows of a sequence,
    for the exponent of time in length; () leaves it out. Raises ConfigError for an unknown name,
    BackendError for a device that is not here, WrongResultError before anything of a case is timed.
    """
    _known("operator", only, cases.OPERATORS)
    _known("shape", shapes, tuple(SHAPES))
    _known("dtype", dtypes, tuple(DTYPES))
    _known("way", ways, cases.WAYS)
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "bench ops: --device cuda, but this torch sees no CUDA device; kunlun doctor says why"
        )
    with clock.threads(threads):
        report: dict[str, Any] = {"conditions": clock.conditions(where)}
        report["conditions"]["memory"] = (
            clock.Memory.how if where.type == "cpu" else "torch.cuda.max_memory_allocated"
        )
        report["cases"], report["sweep"] = [], []
        roofs = {name: clock.Roofs(DTYPES[name], where) for name in dtypes}
        for operator in only:
            for name in shapes:
                case = cases.make(operator, SHAPES[name], where)
                for dtype in dtypes:
                    found = _measure(case, dtype, roofs[dtype], ways, budget)
                    report["cases"].append({"shape": name, **found})
                    say(_line(name, found))
        for operator in (name for name in only if name in SWEPT):
            for rows in sweep:
                case = cases.make(operator, swept(rows), where)
                found = _measure(case, dtypes[0], roofs[dtypes[0]], ways, budget)
                report["sweep"].append({"length": rows, **found})
                say(_line(f"T={rows}", found))
        report["exponents"] = exponents(report["sweep"])
        report["threads"] = _two_threads(only, shapes, dtypes[0], where, budget, say)
        report["conditions"]["load_after"] = clock.load()
    return report


def _known(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"bench ops: no {kind} '{name}'; known: {', '.join(known)}")


def _measure(
    case: cases.Case, dtype_name: str, roofs: clock.Roofs, wanted: Sequence[str], budget: float
) -> dict[str, Any]:
    dtype = DTYPES[dtype_name]
    inputs, outer = case.cast(dtype)
    leaves = [x.detach().requires_grad_() for x in inputs]
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[Any, Callable[[], object]] = {"multiply": roofs.multiply, "copy": roofs.copy}
    for name, way in case.ways(dtype, wanted).items():
        if way.run is None:
            rows[name] = {"way": name, "skipped": way.skipped}
            continue
        try:
            if name == "flex":
                way.run(*inputs)  # compiles, which is no part of the call's memory
            rows[name] = {"way": name, **_verify(case, name, way, leaves, outer, dtype)}
        except (RuntimeError, ImportError) as error:
            if name in cases.OURS:
                raise
            rows[name] = {"way": name, "skipped": _short(error)}
            continue
        runs[name, "forward"] = partial(way.run, *inputs)
        if way.backward:
            runs[name, "both"] = partial(_both, way.run, leaves, outer)
    times = clock.interleaved(runs, clock.stopwatch(case.device)[1], budget=budget)
    peak = roofs.flops / times["multiply"].least
    bandwidth = roofs.bytes / times["copy"].least
    cost = case.cost(dtype)
    for i, what in enumerate(("forward", "both")):
        for name in rows:
            if (name, what) in runs:
                timing = times[name, what]
                rows[name][what] = _figures(timing, cost.flops[i], cost.bytes[i], peak, bandwidth)
    return {
        "operator": case.operator,
        "dtype": dtype_name,
        **case.shape._asdict(),
        "rows": sum(case.lengths),
        "gemm_gflops": peak / 1e9,
        "copy_gb_per_s": bandwidth / 1e9,
        "forward_flops": cost.flops[0],
        "both_flops": cost.flops[1],
        "forward_least_mb": cost.bytes[0] / 2**20,
        "both_least_mb": cost.bytes[1] / 2**20,
        "load": clock.load(),
        "ways": list(rows.values()),
    }


def _both(run: Callable[..., Tensor], leaves: list[Tensor], outer: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(run(*leaves), leaves, outer)


def _verify(
    case: cases.Case,
    name: str,
    way: cases.Way,
    leaves: list[Tensor],
    outer: Tensor,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Error and peak memory of the first call; raises WrongResultError."""
    assert way.run is not None
    assert case.truth is not None
    grads: Sequence[Tensor] = ()
    with clock.Memory(case.device) as memory:
        if way.backward:
            out = way.run(*leaves)
            grads = torch.autograd.grad(out, leaves, outer)
        else:
            out = way.run(*(x.detach() for x in leaves))
    wanted = [case.truth[0], *(case.truth[1] if way.backward else ())]
    pairs = zip([out.detach(), *grads], wanted, strict=True)
    error = max(_distance(got, want) for got, want in pairs)
    if not error <= TOLERANCE[dtype]:
        raise WrongResultError(
            f"{case.operator}, {name}, {str(dtype)[6:]}: off by {error:.1e} of the largest value, "
            f"at most {TOLERANCE[dtype]:.0e} is right; nothing is timed. Run pytest tests/ops"
        )
    return {"error": error, "peak_mb": None if memory.peak is None else memory.peak / 2**20}


def _distance(got: Tensor, want: Tensor) -> float:
    scale = float(want.abs().max())
    return float((got.double().cpu() - want).abs().max()) / (scale or 1.0)


def _short(error: Exception) -> str:
    line = str(error).strip().splitlines()
    return f"{type(error).__name__}: {line[0] if line else ''}"[:200]


def _figures(
    timing: clock.Timing, flops: float, least: float, peak: float, bandwidth: float
) -> dict[str, Any]:
    compute, memory = flops / peak, least / bandwidth
    return {
        "ms": timing.least * 1e3,
        "median_ms": timing.median * 1e3,
        "repeats": timing.repeats,
        "gflops": flops / timing.least / 1e9,
        "gemm_share": compute / timing.least,
        "copy_share": memory / timing.least,
        "roof": "compute" if compute > memory else "memory",
        "roof_share": max(compute, memory) / timing.least,
    }


def exponents(sweep: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slope of log time in log length by operator, way and pass, over the upper lengths (from the
    second on: at the first, fixed costs weigh)."""
    times: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for case in sweep:
        for way in case["ways"]:
            for what in ("forward", "both"):
                if what in way:
                    key = (case["operator"], way["way"], what)
                    times.setdefault(key, []).append((case["length"], way[what]["ms"]))
    return [
        {"operator": operator, "way": way, "pass": what, "exponent": _slope(points[1:])}
        for (operator, way, what), points in times.items()
        if len(points) > 2
    ]


def _slope(points: list[tuple[int, float]]) -> float:
    x, y = ([math.log(p[i]) for p in points] for i in (0, 1))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def _two_threads(
    only: Sequence[str],
    shapes: Sequence[str],
    dtype_name: str,
    device: torch.device,
    budget: float,
    say: Say,
) -> list[dict[str, Any]]:
    """Wall time of the default backend with one thread over that with two, forward + backward."""
    found: list[dict[str, Any]] = []
    names = [name for name in shapes if name in THREADED]
    if device.type != "cpu" or (clock.cores() < 2 and names):
        return [{"skipped": f"needs two CPU cores; device {device.type}, {clock.cores()} cores"}]
    dtype = DTYPES[dtype_name]
    for operator in only:
        for name in names:
            case = cases.make(operator, SHAPES[name], device, truth=False)
            inputs, outer = case.cast(dtype)
            leaves = [x.detach().requires_grad_() for x in inputs]
            run = case.default()

            def on(
                count: int,
                run: Callable[..., Tensor] = run,
                leaves: list[Tensor] = leaves,
                outer: Tensor = outer,
            ) -> None:
                with clock.threads(count):
                    _both(run, leaves, outer)

            runs = {1: partial(on, 1), 2: partial(on, 2)}
            for warm_up in runs.values():
                warm_up()
            times = clock.interleaved(runs, clock.wall, budget=2 * budget)
            row = {
                "operator": operator,
                "shape": name,
                "dtype": dtype_name,
                "one_ms": times[1].least * 1e3,
                "two_ms": times[2].least * 1e3,
                "speed_up": times[1].least / times[2].least,
                "load": clock.load(),
            }
            found.append(row)
            say(f"{name:8} {operator:17} two threads x {row['speed_up']:.2f}")
    return found


def _line(name: str, case: dict[str, Any]) -> str:
    """Progress: the shares of ours, and how much longer the others take."""
    ways = {w["way"]: w for w in case["ways"] if "forward" in w}
    text = f"{name:8} {case['operator']:17}{case['dtype']:9}"
    ours = "native" if "native" in ways else "triton" if "triton" in ways else "portable"
    for what in (w for w in ("forward", "both") if ours in ways and w in ways[ours]):
        own = ways[ours][what]
        text += f"  {what} {own['ms']:.1f} ms {own['roof_share']:.0%} of the {own['roof']} roof"
        ratios = (
            f"{n} x {w[what]['ms'] / own['ms']:.1f}"
            for n, w in ways.items()
            if n != ours and what in w
        )
        text += f" ({', '.join(ratios)})"
    return text
