"""`kunlun bench ops` on a tiny shape: what is in the report, and what is never timed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kunlun.bench import cases, clock, shapes, tables
from kunlun.bench.backends import library
from kunlun.bench.ops import WrongResultError, bench_ops, exponents
from kunlun.bench.report_file import read_report, rounded, write_report
from kunlun.cli import keep_freed_memory
from kunlun.errors import ConfigError
from kunlun.ops import native
from kunlun.ops.dispatch import choose

TINY = shapes.Shape(3, 9, 20, 2, 8, 4, 8, 2)
WAYS = tuple(way for way in cases.WAYS if way != "flex")  # which compiles for half a minute
CPU = torch.device("cpu")


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(shapes.SHAPES, "tiny", TINY)
    patch.setitem(clock.SQUARE, "cpu", 128)
    patch.setattr(clock, "COPIED", 2**12)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def bench(**settings: Any) -> dict[str, Any]:
    return bench_ops(**{"shapes": ["tiny"], "ways": WAYS, "budget": 0.0, "sweep": (), **settings})


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return bench(sweep=(32, 64, 128), dtypes=["float32", "bfloat16"])


def test_report_has_every_operator_dtype_and_way(report: dict[str, Any]) -> None:
    seen = {(c["operator"], c["shape"], c["dtype"]) for c in report["cases"]}
    assert seen == {(o, "tiny", d) for o in cases.OPERATORS for d in ("float32", "bfloat16")}
    for case in [*report["cases"], *report["sweep"]]:
        assert [way["way"] for way in case["ways"]] == list(WAYS)
        for way in case["ways"]:
            assert ("skipped" in way) != ("forward" in way)
            assert way.get("skipped") != ""
        assert case["gemm_gflops"] > 0
        assert case["copy_gb_per_s"] > 0


def test_report_measures_what_runs_and_says_why_the_rest_does_not(report: dict[str, Any]) -> None:
    by_way = {
        case["operator"]: {way["way"]: way for way in case["ways"]} for case in report["cases"]
    }
    for operator, ways in by_way.items():
        assert {"forward", "both", "error", "peak_mb"} <= set(ways["portable"]), operator
        assert "padded" in ways
        assert "CUDA" in ways["triton"]["skipped"]
    assert "softmax" in by_way["gdpa"]["sdpa"]["skipped"]
    assert "needs CUDA" in by_way["window_attention"]["flash_attn"]["skipped"]
    assert "forward" in by_way["window_attention"]["sdpa"]
    assert "forward" in by_way["seed_attention"]["sdpa"]


def test_figures_follow_from_one_another(report: dict[str, Any]) -> None:
    for case in report["cases"]:
        for way in (w for w in case["ways"] if "forward" in w):
            for what in ("forward", "both"):
                found, flops = way[what], case[f"{what}_flops"]
                assert found["ms"] <= found["median_ms"]
                assert found["repeats"] >= 3
                assert found["gflops"] == pytest.approx(flops / found["ms"] / 1e6)
                share = found["gflops"] / case["gemm_gflops"]
                assert found["gemm_share"] == pytest.approx(share)
                assert found["roof_share"] == max(found["gemm_share"], found["copy_share"])


def test_conditions_are_stated(report: dict[str, Any]) -> None:
    about = report["conditions"]
    for key in ("cpu", "threads", "packages", "clock", "allocator", "load", "native", "memory"):
        assert about[key] is not None
    assert isinstance(about["allocator"]["keeps_freed_memory"], bool)


@pytest.mark.skipif(clock.cores() < 2, reason="one core")
def test_two_threads_are_a_line_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "B", TINY)
    (row,) = bench(only=["gdpa"], shapes=["B"], dtypes=["float32"], ways=["portable"])["threads"]
    assert row["speed_up"] == pytest.approx(row["one_ms"] / row["two_ms"])
    monkeypatch.setattr(clock, "cores", lambda: 1)
    (row,) = bench(only=["gdpa"], shapes=["B"], dtypes=["float32"], ways=["portable"])["threads"]
    assert "needs two CPU cores" in row["skipped"]


def _wrong_value(out: Tensor, q: Tensor) -> Tensor:
    return out * 1.01


def _wrong_gradient(out: Tensor, q: Tensor) -> Tensor:
    return out + (q - q.detach())


@pytest.mark.parametrize("spoil", [_wrong_value, _wrong_gradient])
def test_a_wrong_operator_is_not_timed(
    spoil: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = cases.gdpa

    def gdpa(q: Tensor, *rest: Any, **settings: Any) -> Tensor:
        return spoil(right(q, *rest, **settings), q)

    gdpa.__signature__ = inspect.signature(right)  # type: ignore[attr-defined]
    monkeypatch.setattr(cases, "gdpa", gdpa)
    monkeypatch.setattr(clock, "interleaved", lambda *_, **__: pytest.fail("something was timed"))
    with pytest.raises(WrongResultError, match=r"gdpa, portable, float32: off by .* nothing is"):
        bench(only=["gdpa"], ways=["portable"], dtypes=["float32"])


def test_a_fault_of_ours_is_no_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    def rotary(x: Tensor, angle: Tensor) -> Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(cases, "rotary", rotary)
    with pytest.raises(RuntimeError, match="broken"):
        bench(only=["rotary"], ways=["portable"], dtypes=["float32"])


def test_scores_that_do_not_fit_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "MOST_SCORES", 1000)
    found = bench(only=["window_attention"], ways=["padded"], dtypes=["float32"])
    (way,) = found["cases"][0]["ways"]
    assert "its scores are" in way["skipped"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": ["gpda"]}, "no operator 'gpda'; known: gdpa"),
        ({"shapes": ["E"]}, "no shape 'E'; known: A, B, C, D"),
        ({"dtypes": ["float16"]}, "no dtype 'float16'; known: float32, bfloat16"),
        ({"ways": ["cuda"]}, "no way 'cuda'; known: native"),
    ],
)
def test_unknown_names_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(**settings)


@pytest.mark.parametrize("operator", ["gdpa", "window_attention", "seed_attention"])
def test_least_bytes_are_those_of_the_docstrings(operator: str) -> None:
    case = cases.make(operator, TINY, CPU, truth=False)
    total, n, (h, d) = sum(case.lengths), TINY.samples, (TINY.heads, TINY.dim)
    q, kv = {
        "gdpa": (total, n * TINY.keys),
        "window_attention": (total, total),
        "seed_attention": (TINY.seeds, total),
    }[operator]
    out = n * TINY.seeds if operator == "seed_attention" else total
    assert case.cost(torch.float32).bytes[0] == 4 * (q + 2 * kv + out) * h * d


@pytest.mark.parametrize(
    ("operator", "forward", "both"),
    [("layer_norm", 2, 5), ("add_rms_norm", 4, 8), ("gelu_approx", 2, 5)],
)
def test_least_bytes_of_row_wise_operators(operator: str, forward: int, both: int) -> None:
    case = cases.make(operator, TINY, CPU, truth=False)
    once = 4 * sum(case.lengths) * TINY.heads * TINY.dim
    assert case.cost(torch.float32) == ((0, 0), (forward * once, both * once))


def test_exponent_is_the_slope_above_the_shortest() -> None:
    way = {"way": "native"}
    sweep = [
        {"operator": "gdpa", "length": n, "ways": [{**way, "forward": {"ms": ms}}]}
        for n, ms in ((64, 9.0), (128, 2.0), (256, 8.0), (512, 32.0))
    ]
    (found,) = exponents(sweep)
    assert found.pop("exponent") == pytest.approx(2)
    assert found == {"operator": "gdpa", "way": "native", "pass": "forward"}


def test_memory_counts_what_a_call_touches() -> None:
    keep_freed_memory()
    torch.ones(2**24)  # freed before: not to be counted, nor to hide what follows
    with clock.Memory(CPU) as memory:
        torch.ones(2**23)
    if memory.peak is None:
        pytest.skip("no /proc/self/clear_refs")
    assert 31 * 2**20 < memory.peak < 36 * 2**20


def test_runs_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = clock.interleaved(runs, clock.wall, budget=0)
    assert "".join(order) == "ababab"
    assert times["a"].least <= times["a"].median


def test_portable_way_has_no_library_inside_and_has_it_back_after() -> None:
    before = native.load
    with library("portable"):
        assert choose("gdpa", device="cpu").reason == "the benchmark took it away"
    assert native.load is before
    with library("native"):
        assert native.load is before


def test_table_has_a_line_a_case(report: dict[str, Any]) -> None:
    lines = tables.ops_table(report).splitlines()
    assert sum(line.count("| tiny |") for line in lines) == len(report["cases"])
    assert len({line.count("|") for line in lines[: 2 + len(report["cases"])]}) == 1


def test_table_names_the_roof_of_each_figure() -> None:
    def figures(share: float, roof: str) -> dict[str, Any]:
        return {"ms": 1.0, "gflops": 1.0, "gemm_share": 0.1, "roof_share": share, "roof": roof}

    way = {"way": "native", "peak_mb": None, "forward": figures(0.53, "memory")}
    case = {"operator": "gdpa", "shape": "A", "dtype": "bfloat16", "forward_flops": 1.0}
    report: dict[str, Any] = {
        "cases": [{**case, "both_least_mb": 1.0, "ways": [way]}],
        "exponents": [],
        "threads": [],
        "conditions": {
            **{"cpu": "", "device": "cpu", "threads": 1, "packages": {"torch": ""}, "native": ""},
            **{"clock": "cpu", "load": 1, "load_after": 1},
            "allocator": {"keeps_freed_memory": True},
        },
    }
    way["both"] = figures(0.32, "compute")
    assert "| 53% memory / 32% compute |" in tables.ops_table(report)
    way["both"] = figures(0.32, "memory")
    assert "| 53% / 32% (memory) |" in tables.ops_table(report)


def test_report_file_round_trip(tmp_path: Any, report: dict[str, Any]) -> None:
    file = tmp_path / "new" / "ops.json"
    write_report(rounded(report), file)
    assert read_report(file, "cases") == rounded(report)
    assert rounded({"a": [1.23456, 7, None, "b"]}) == {"a": [1.235, 7, None, "b"]}
    with pytest.raises(ConfigError, match="has no 'settings'"):
        read_report(file, "settings")
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_report(file, "cases")
    with pytest.raises(ConfigError, match="no such file"):
        read_report(tmp_path / "none.json", "cases")
