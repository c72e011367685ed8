"""Runs tests of Triton kernels in a process in which Triton interprets them.

What a kernel is, compiled or interpreted, is fixed when its module is imported; the tests that
compile kernels need the other kind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def assert_passes_interpreted(name: str) -> None:
    """Runs the tests of tests/ops/`name`, a file that pytest does not collect by itself."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    # Triton 3.6 reads loop bounds in a way that NumPy means to give up.
    command += ["-W", "ignore:Conversion of an array:DeprecationWarning"]
    done = subprocess.run(
        [*command, f"tests/ops/{name}"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
