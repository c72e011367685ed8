"""Uninitialised memory is NaN in every test of this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo  # it, too, keeps the functions that it finds when it is imported
from torch.utils._device import _device_constructors

_device_constructors()  # torch keeps what it finds at the first call: its own functions, not ours
EMPTY = ["empty", "empty_like", "empty_strided"]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kunlun gets from torch.empty* holds NaN, so that reading it before writing shows."""

    def poisoning(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("kunlun.") or made.is_meta:
                return made
            return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(-(2**30))

        return empty

    for name in EMPTY:
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
    for name in ["new_empty", "new_empty_strided"]:
        monkeypatch.setattr(torch.Tensor, name, poisoning(getattr(torch.Tensor, name)))
