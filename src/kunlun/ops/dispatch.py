"""Which implementation of an operator runs here, and why.

A pure function of its arguments: no environment variable, no state. `kunlun doctor` prints the
same Choice that the operators act on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kunlun.errors import BackendError

OPERATORS = ("gdpa", "window_attention", "seed_attention", "sum_kron", "rotary")
BACKENDS = ("portable", "native", "triton")


class Choice(NamedTuple):
    """The backend that runs and the reason it was chosen."""

    backend: str
    reason: str


def choose(
    operator: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Choice:
    """The backend of `operator` on `device`, or of a forced `backend`.

    Raises: BackendError if the forced backend is unknown or cannot run, with the reason.
    """
    if operator not in OPERATORS:
        raise BackendError(f"operator: '{operator}' is not one of {', '.join(OPERATORS)}")
    if backend is not None and backend not in BACKENDS:
        raise BackendError(f"backend: '{backend}' is not one of {', '.join(BACKENDS)}")
    if backend in ("native", "triton"):
        raise BackendError(f"backend: {_why_not(backend, operator, torch.device(device), dtype)}")
    if backend == "portable":
        return Choice("portable", "asked for")
    faster = "triton" if torch.device(device).type == "cuda" else "native"
    return Choice("portable", _why_not(faster, operator, torch.device(device), dtype))


def _why_not(backend: str, operator: str, device: torch.device, dtype: torch.dtype | None) -> str:
    if backend == "triton" and device.type != "cuda":
        return f"the triton kernels need CUDA and the device is {device.type}; use 'portable'"
    if backend == "native" and device.type != "cpu":
        return f"the native library runs on cpu and the device is {device.type}; use 'portable'"
    return f"this release has no {backend} {operator}; use 'portable'"
