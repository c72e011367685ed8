"""The same Python script with this CPU's instructions and with the oldest ones."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np


def outputs(script: str, *args: str) -> set[str]:
    """What the script prints on either; one element if it does not depend on the CPU."""
    simd = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    oldest = {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": ",".join(simd)}
    return {
        subprocess.run(
            [sys.executable, "-c", script, *args],
            env={**os.environ, **settings},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for settings in ({}, oldest)
    }
