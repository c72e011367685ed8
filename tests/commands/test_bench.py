"""`kunlun bench`: documents, files, and one clear line for a user's mistake."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kunlun.bench import clock, shapes
from kunlun.bench import model as bench_model
from kunlun.cli import keep_freed_memory

TINY = shapes.Shape(3, 9, 20, 2, 8, 4, 8, 2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setitem(clock.SQUARE, "cpu", 128)
    monkeypatch.setattr(clock, "COPIED", 2**12)
    monkeypatch.setitem(bench_model.SETTINGS, "tiny", bench_model.Setting(4, 9, 20))


OPS = ("bench", "ops", "--only", "gdpa", "--shapes", "tiny", "--dtype", "float32", "--no-sweep")


def test_ops_writes_json_and_figure_and_prints_json(kunlun, tmp_path: Path) -> None:
    code, out, err = kunlun(*OPS, "--json", "--out", "made")
    assert code == 0
    printed, written = json.loads(out), json.loads((tmp_path / "made" / "ops.json").read_text())
    assert [c["operator"] for c in printed["cases"]] == ["gdpa"]
    assert [w["way"] for w in written["cases"][0]["ways"]][:3] == ["native", "portable", "triton"]
    assert (tmp_path / "made" / "ops.png").read_bytes().startswith(b"\x89PNG")
    assert "tiny     gdpa" in err
    table = kunlun("bench", "ops", "--table", "made/ops.json")
    assert table.code == 0
    assert "| gdpa | tiny | float32 |" in table.out
    for other in (("--only", "rotary"), ("--shapes", "A"), ("--dtype", "bfloat16")):
        assert "tiny" not in kunlun("bench", "ops", "--table", "made/ops.json", *other).out


def test_ops_prints_progress_and_table(kunlun) -> None:
    code, out, err = kunlun(*OPS, "--ways", "portable")
    assert (code, err) == (0, "")
    assert "| gdpa | tiny | float32 | portable |" in out


def test_model_writes_json_and_prints_table(kunlun, tmp_path: Path) -> None:
    code, out, _ = kunlun("bench", "model", "--preset", "small", "--setting", "tiny", "--out", ".")
    assert code == 0
    assert "| tiny: 4 rows, mean 9, up to 20 | fp32 | padded |" in out
    (setting,) = json.loads((tmp_path / "model.json").read_text())["settings"]
    assert setting["preset"] == "small"
    table = kunlun("bench", "model", "--table", "model.json")
    assert table.code == 0
    assert table.out.strip() in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_that_is_not_here_is_one_line(kunlun) -> None:
    code, out, err = kunlun(*OPS, "--device", "cuda")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--device cuda, but this torch sees no CUDA device" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ops --only gpda", "no operator 'gpda'; known: gdpa, window_attention"),
        ("ops --shapes Z", "no shape 'Z'; known: A, B, C, D"),
        ("ops --dtype int8", "no dtype 'int8'; known: float32, bfloat16"),
        ("ops --threads 0", "0 is not in the range"),
        ("ops --table none.json", "none.json: no such file"),
        ("model --preset bse", "did you mean 'base'?"),
        ("model --setting longer", "no setting 'longer'"),
        ("model --table none.json", "none.json: no such file"),
        ("op", "no verb 'op'; did you mean 'ops'?"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str, kunlun, tmp_path: Path) -> None:
    code, out, err = kunlun("bench", *line.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


MAIN = """
import contextlib
from kunlun.cli import main
with contextlib.suppress(SystemExit):
    main(["--version"])
"""
MEASURE = """
import json, resource, torch
from kunlun.bench import clock
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(50):
    torch.ones(1_000_000)
print(json.dumps({"of_4_MB": faults() - before, **clock.allocator()}))
"""
TENSOR = 4_000_000 // 4096  # page faults of a tensor in new pages
AS_BY_DEFAULT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}
glibc_alone = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc alone"
)


def _allocator(code: str, tuning: dict[str, str]) -> dict[str, Any]:
    """What a process measures about its allocator."""
    plain = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    line = [sys.executable, "-c", code + MEASURE]
    done = subprocess.run(line, env=plain | tuning, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@glibc_alone
@pytest.mark.parametrize(
    ("tuning", "keeps"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)]
)
def test_freed_memory_is_kept_unless_the_user_tuned_malloc(
    tuning: dict[str, str], keeps: bool
) -> None:
    assert _allocator(MAIN, tuning)["keeps_freed_memory"] is keeps


@glibc_alone
def test_the_way_back_to_the_default_faults_as_an_untouched_process() -> None:
    ours, untouched = _allocator(MAIN, AS_BY_DEFAULT), _allocator("", {})
    assert ours["keeps_freed_memory"] is untouched["keeps_freed_memory"] is False
    assert ours["of_4_MB"] == pytest.approx(untouched["of_4_MB"], abs=8 * TENSOR)  # of 50


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_other_c_libraries_are_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def __init__(self, name: None) -> None:
            if error is not AttributeError:
                raise error

        def mallopt(self, *_: int) -> int:
            return pytest.fail("mallopt of another C library was called")

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert keep_freed_memory() is False
