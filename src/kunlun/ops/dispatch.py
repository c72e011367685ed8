"""Which implementation of an operator runs here, and why.

A function of its arguments and of whether the native library is there: no environment variable.
`kunlun doctor` prints the same Choice that the operators act on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kunlun.errors import BackendError
from kunlun.ops import native

OPERATORS = (
    *("gdpa", "window_attention", "seed_attention", "sum_kron", "mix_rows"),
    *("rotary", "layer_norm", "rms_norm", "add_rms_norm", "gelu_approx"),
)
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
    where = torch.device(device)
    if backend == "portable":
        return Choice("portable", "asked for")
    if backend is not None:
        why = _why_not(backend, operator, where, dtype)
        if why is not None:
            raise BackendError(f"backend: {why}; use 'portable'")
        return Choice(backend, "asked for")
    faster = "triton" if where.type == "cuda" else "native"
    why = _why_not(faster, operator, where, dtype)
    return Choice(faster, native.state()[1]) if why is None else Choice("portable", why)


def runs_native(operator: str, x: Tensor, backend: str) -> bool:
    """What the registered operators ask; `backend` "" lets choose decide."""
    chosen = choose(operator, device=x.device, dtype=x.dtype, backend=backend or None)
    return chosen.backend == "native"


def _why_not(
    backend: str, operator: str, device: torch.device, dtype: torch.dtype | None
) -> str | None:
    if backend == "native":
        return native.why_not(operator, device, dtype)
    if device.type != "cuda":
        return f"the triton kernels need CUDA and the device is {device.type}"
    return f"this release has no triton {operator}"
