"""benchmarks/gpu.sh: all of it that runs without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "benchmarks"
# What a GPU box with torch need not have.
ABSENT = ("pydantic", "click", "rich", "yaml", "pyarrow", "safetensors", "torchmetrics")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script wrote in a process that has torch and the standard library."""
    out = tmp_path_factory.mktemp("gpu")
    bare = tmp_path_factory.mktemp("bare")
    for name in ABSENT:
        (bare / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    done = subprocess.run(
        ["bash", FOLDER / "gpu.sh", "--device", "cpu", "--tiny"],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(bare), "OUT": str(out)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [x.name for x in out.iterdir()] == ["gpu.json"]
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return found


def test_gpu_benchmark_checks_every_operator_in_both_dtypes(report: dict[str, Any]) -> None:
    assert report["passed"]
    assert report["tiny"]
    seen = {(line["operator"], line["dtype"]) for line in report["checks"]}
    operators, dtypes = ("gdpa", "window", "seeds"), ("float32", "bfloat16")
    assert seen == {(operator, dtype) for operator in operators for dtype in dtypes}
    for line in report["checks"]:
        assert line["passed"] == (line["repeats"] and line["alone"])
        assert max(line["errors"].values(), default=0) <= line["tolerance"]


def test_gpu_benchmark_times_ours_beside_the_others(report: dict[str, Any]) -> None:
    ways: dict[str, set[str]] = {}
    for line in report["timings"]:
        ways.setdefault(line["operator"], set()).add(line["way"])
        if line["way"] == "kunlun":
            for half in ("forward", "backward"):
                assert line[f"{half}_ms"] > 0
                assert 0 < line[half]["share"] < 1
                assert line[half]["roof"] in ("compute", "memory")
        elif "error" in line:
            assert line["error"] < 3e-2
            assert "skipped" in line or line["forward_speedup"] > 0
        else:
            assert line["skipped"]
    others = {"kunlun", "FlexAttention", "flash-attn"}
    assert ways == {
        "gdpa": {*others, "padded eager", "SDPA"},
        "window": {*others, "padded SDPA"},
        "seeds": {*others, "padded SDPA"},
    }
    # FlexAttention computes the same, although its backward needs a GPU.
    flex = {x["operator"]: x for x in report["timings"] if x["way"] == "FlexAttention"}
    assert "softmax" in flex["gdpa"]["skipped"]
    assert flex["window"]["error"] < 3e-2
    assert flex["seeds"]["error"] < 3e-2


def test_gpu_benchmark_says_where_it_ran_and_what_it_aimed_at(report: dict[str, Any]) -> None:
    assert report["machine"]["torch"] == torch.__version__
    assert report["roofs"]["bfloat16"]["flops_per_s"] > 0
    assert report["roofs"]["bfloat16"]["bytes_per_s"] > 0
    shares = [x for x in report["targets"] if "share" in x["target"]]
    assert [x["wanted"] for x in shares] == [0.65, 0.45]
    assert all(x["met"] == (x["found"] >= x["wanted"]) for x in report["targets"])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("gpu")


@pytest.fixture
def checks(gpu: ModuleType) -> ModuleType:
    return import_module("gpu_checks")


def _wrong(out: Tensor) -> Tensor:
    return out * 1.01


def _undefined(out: Tensor) -> Tensor:
    return torch.cat([out[:-1], out[-1:] * float("nan")])


def _changing(out: Tensor, calls: list[int] = [0]) -> Tensor:  # noqa: B006
    calls[0] += 1
    return out * (1 + 1e-6 * calls[0])


def _depending(out: Tensor) -> Tensor:
    return out * (1 + 1e-6 * len(out))


@pytest.mark.parametrize("fault", [_wrong, _undefined, _changing, _depending])
def test_gpu_check_finds_a_fault(checks: ModuleType, fault: Callable[[Tensor], Tensor]) -> None:
    case = checks.window_case("one", (3, 5), width=8, dtype=torch.float32, window=1)
    device = torch.device("cpu")
    assert checks.check(case, device, "portable")["passed"]
    run = case.run
    faulty = case._replace(run=lambda *args, **kwargs: fault(run(*args, **kwargs)))
    line = checks.check(faulty, device, "portable")
    assert not line["passed"]
    assert line["repeats"] == (fault not in (_undefined, _changing))
    assert line["alone"] == (fault is _wrong)


def test_gpu_benchmark_times_nothing_after_a_failed_check(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "check", lambda *_: {"operator": "window", "passed": False})
    assert gpu.main(["--device", "cpu", "--tiny", "--only", "window", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["passed"]
    assert "timings" not in found


def test_gpu_benchmark_times_what_passed_although_time_ran_out(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = {"operator": "window", "passed": True}
    seeds = {"operator": "seeds", "passed": False}
    unchecked = [{"operator": name, "unchecked": "no time left"} for name in ("gdpa", "window")]
    monkeypatch.setattr(gpu, "run_checks", lambda *_: [window, seeds, *unchecked])
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["passed"]
    assert found["unchecked"] == 2
    assert {line["operator"] for line in found["timings"]} == {"window"}


def test_gpu_checks_without_time_are_unchecked(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "CHECK_LIMIT", -1)
    lines = gpu.run_checks(["seeds"], torch.device("cpu"), True)
    assert lines
    assert all(line["unchecked"] == "no time left" and "passed" not in line for line in lines)


def test_gpu_checks_compile_few_kernels(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is for Linux")
    backend = import_module("kunlun.ops.triton")
    if backend.interpreted():
        pytest.skip("interpreted kernels are not compiled")
    kernels: set[tuple[Any, ...]] = set()

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Notes what Triton would compile: constants, and what it specialises arguments to."""
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        key: list[Any] = [kernel.__module__, kernel.__name__, kwargs.get("num_warps")]
        for parameter in kernel.params:
            value = given[parameter.name]
            if isinstance(value, Tensor):
                key.append((value.dtype, value.data_ptr() % 16 == 0))
            elif parameter.is_constexpr:
                key.append(value)
            elif parameter.do_not_specialize or isinstance(value, float):
                key.append(type(value))
            else:
                key.append(1 if value == 1 else value % 16 == 0)
        kernels.add(tuple(key))

    monkeypatch.setattr(jit.JITFunction, "run", record)
    monkeypatch.setattr(backend, "why_not", lambda *_: None)
    for case in checks.cases(["gdpa", "window", "seeds"], False):
        reference = partial(case.run, backend="portable")  # faster than the one in float64
        checks.check(case._replace(reference=reference), torch.device("cpu"), "triton")
    names = {name for _, name, *_ in kernels}
    assert {"forward_kernel", "queries_kernel", "keys_kernel", "list_tiles"} < names
    assert len(kernels) < 125
