"""One house for all command tests: what the README's own-data commands leave behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BIN = Path(sys.executable).parent


class Result(NamedTuple):
    """What a command line answered."""

    code: int
    out: str
    err: str


def block(language: str) -> str:
    """The README's only code block of that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return str(found)


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a bash script with this environment's `kunlun` and one thread a process."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "KUNLUN_CACHE": str(cwd / "cache"),
    }
    return subprocess.run(
        ["bash", "-ec", script], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def readme_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The directory in which the README's commands ran, and what they answered."""
    house = tmp_path_factory.mktemp("house")
    return house, shell(block("sh"), house)


@pytest.fixture(scope="session")
def house(readme_run: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """logs/, datasets/mine, runs/small and scores.parquet; read only."""
    folder, done = readme_run
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def kunlun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """`kunlun` in this process, in an empty directory (or `cwd`)."""
    from kunlun.cli import run

    def call(*arguments: str, cwd: Path | None = None) -> Result:
        monkeypatch.chdir(cwd if cwd is not None else tmp_path)
        capsys.readouterr()
        code = run(arguments)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call
