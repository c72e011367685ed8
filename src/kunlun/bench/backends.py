"""One backend of our operators, whether or not an operator lets its caller force it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kunlun.errors import BackendError
from kunlun.ops import choose, native


@contextmanager
def library(way: str) -> Iterator[None]:
    """Inside, for the way "portable", every operator acts as on a machine where the native library
    was not built; for others nothing changes.

    The model forces no backend on its operators, and nothing else in the package can: what a
    machine without a compiler runs is measured by being one.
    """
    load = native.load
    if way == "portable":
        native.load = lambda: native.Loaded(None, "the benchmark took it away")  # type: ignore[assignment]
    try:
        yield
    finally:
        native.load = load


def forced(
    operator: Callable[..., Tensor], backend: str, device: torch.device, dtype: torch.dtype
) -> Callable[..., Tensor]:
    """`operator` on that backend. Raises BackendError with the reason if it cannot run here."""
    name = operator.__name__
    if backend != "portable":
        choose(name, device=device, dtype=dtype, backend=backend)
    if "backend" in inspect.signature(operator).parameters:
        return lambda *args, **settings: operator(*args, **settings, backend=backend)
    if backend != "portable":
        raise BackendError(f"backend: {name} takes none; it has one path")
    return operator
