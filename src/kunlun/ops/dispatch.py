"""Which implementation of an operator runs here, and why.

A function of its arguments, of whether the native library is there and of what Triton can run:
it reads no environment variable.
`kunlun doctor` prints the same Choice that the operators act on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kunlun.errors import BackendError
from kunlun.ops import native, triton

OPERATORS = (
    *("gdpa", "window_attention", "seed_attention", "hstu_attention", "sum_kron", "mix_rows"),
    *("rotary", "layer_norm", "rms_norm", "add_rms_norm", "gelu_approx", "row_wise_adagrad"),
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
    width: int | None = None,
    backend: str | None = None,
) -> Choice:
    """The backend of `operator` on `device`, or of a forced `backend`.

    `width`: channels of a head. What is not given is taken to fit.

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
        why = _why_not(backend, operator, where, dtype, width)
        if why is not None:
            raise BackendError(f"backend: {why}; use 'portable'")
        return Choice(backend, "asked for")
    faster = "triton" if where.type == "cuda" else "native"
    why = _why_not(faster, operator, where, dtype, width)
    if why is not None:
        return Choice("portable", why)
    return Choice(faster, triton.version() if faster == "triton" else native.state()[1])


def runs_on(operator: str, x: Tensor, backend: str) -> str:
    """What the registered operators ask about [L, H, D]; `backend` "" lets choose decide."""
    chosen = choose(
        operator, device=x.device, dtype=x.dtype, width=x.shape[-1], backend=backend or None
    )
    return chosen.backend


def _why_not(
    backend: str,
    operator: str,
    device: torch.device,
    dtype: torch.dtype | None,
    width: int | None,
) -> str | None:
    if backend == "native":
        return native.why_not(operator, device, dtype)
    return triton.why_not(operator, device, dtype, width)
