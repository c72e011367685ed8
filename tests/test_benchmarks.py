"""The studies under benchmarks/: what they may skip. They are not run here."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "kuairand.py"


@pytest.fixture
def kuairand() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kuairand", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls(
    kuairand: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, Path]]:
    """What the study asked for: ("prepare", folder) and ("train", run), which do nothing else."""
    made: list[tuple[str, Path]] = []

    def prepare(schema: Path, out: Path, *, root: Path) -> None:
        out.mkdir(parents=True)
        made.append(("prepare", out))

    def train(config: object, *, out: Path, resume: bool) -> Path:
        assert resume, "a finished run would be started over"
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.json").write_text('{"test": {}}')
        (out / "env.json").write_text('{"git_commit": "abc", "data": {"path": "here"}}')
        made.append(("train", out))
        return out

    monkeypatch.setattr(import_module("kunlun.data.prepare"), "prepare", prepare)
    monkeypatch.setattr(import_module("kunlun.training.trainer"), "train", train)
    monkeypatch.setattr(kuairand, "EXAMPLES", tmp_path / "examples")
    (tmp_path / "examples").mkdir()
    (tmp_path / "logs").mkdir()
    for name in kuairand.SCHEMAS.values():
        (tmp_path / "examples" / name).write_text("labels: {}")
    (tmp_path / "logs" / "impressions.parquet").write_text("one")
    return made


@pytest.mark.parametrize("change", ["nothing", "schema", "logs"])
def test_kuairand_prepares_and_trains_again_when_something_changed(
    kuairand: ModuleType, calls: list[tuple[str, Path]], tmp_path: Path, change: str
) -> None:
    def study() -> list[tuple[str, Path]]:
        calls.clear()
        found = kuairand.study(tmp_path / "logs", tmp_path / "work", 2)
        assert [cell["git_commit"] for cell in found["cells"]] == ["abc"] * 4
        return list(calls)

    first = study()
    assert [what for what, _ in first] == ["prepare", "train", "train"] * 2
    if change == "schema":
        (tmp_path / "examples" / "schema.yaml").write_text("labels: {click: {}}")
    if change == "logs":
        (tmp_path / "logs" / "impressions.parquet").write_text("two")
    again = study()
    trained, retrained = ({place for what, place in x if what == "train"} for x in (first, again))
    prepared = [what for what, _ in again].count("prepare")
    assert (prepared, len(trained & retrained)) == {
        "nothing": (0, 4), "schema": (2, 0), "logs": (2, 0),
    }[change]  # fmt: skip  # one schema extends the other


@pytest.mark.parametrize("given", ["", "ACTIVE"], ids=["ours", "the user's"])
def test_kuairand_threads_wait_without_spinning_unless_asked(
    kuairand: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given)
    if not given:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    seen = []

    def study(*_: object) -> dict[str, list[object]]:
        seen.append(os.environ.get("OMP_WAIT_POLICY"))
        return {"cells": []}

    monkeypatch.setattr(kuairand, "study", study)
    monkeypatch.setattr(kuairand, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(sys, "argv", ["kuairand.py", "--logs", str(tmp_path)])
    kuairand.main()
    assert seen == [given or "PASSIVE"]
    assert json.loads((tmp_path / "result.json").read_text()) == {"cells": []}
