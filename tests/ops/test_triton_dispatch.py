"""When the dispatch takes the Triton kernels, and what it says when it does not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from kunlun.ops import Choice, choose, gdpa, seed_attention, triton, window_attention


def test_choose_says_why_a_gpu_runs_portably(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**kwargs: object) -> str:
        chosen = choose(**{"operator": "gdpa", "device": "cuda:0", **kwargs})
        assert chosen.backend == "portable"
        return chosen.reason

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton, "_installed", lambda: triton._Installed("3.7.1", None))
    assert reason() == "torch sees no CUDA device"
    assert reason(operator="rotary") == "this release has no triton rotary"
    assert reason(width=129) == "the triton kernels take heads of 128 channels at most, not 129"
    assert reason(dtype=torch.float64).endswith("and the dtype is torch.float64")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert reason() == "the triton kernels need compute capability 8.0 and this GPU has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    shared = {0: 227 * 1024, 1: 163 * 1024}  # as an H100 has, and an A100
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(shared_memory_per_block_optin=shared[index]),
    )
    assert choose("gdpa", device="cuda:0") == Choice("triton", "triton 3.7.1")
    assert reason(device="cuda:1") == (
        "the triton tiles need 224 KB of shared memory and this GPU has 163 KB"
    )
    assert choose("window_attention", device="cuda:1").backend == "triton"
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert reason(device="cuda").endswith("and this GPU has 163 KB")
    monkeypatch.setattr(triton, "_installed", lambda: triton._Installed("", "not there"))
    assert reason() == "not there"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("no such file"), "triton is not installed (no such file)"),
        (RuntimeError("0 drivers"), "triton cannot be imported (RuntimeError: 0 drivers)"),
        (OSError("bad library"), "triton cannot be imported (OSError: bad library)"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_whatever_importing_triton_raises_is_a_reason(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    assert triton._installed.__wrapped__().problem == reason


@pytest.mark.parametrize("operator", ["gdpa", "window_attention", "seed_attention"])
def test_kernels_are_launched_on_the_device_of_their_rows(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, offsets = torch.ones(3, 1, 16), torch.tensor([0, 3])
    launched: list[tuple[str, list[Tensor]]] = []
    inside: list[Tensor] = []

    @contextmanager
    def device_of(rows: Tensor) -> Iterator[None]:
        inside.append(rows)
        yield
        inside.clear()

    class Kernels:
        @staticmethod
        def forward(*_: object) -> Tensor | tuple[Tensor, Tensor]:
            launched.append(("forward", list(inside)))
            if operator == "gdpa":
                return torch.ones(3, 1, 16)
            heads = (3, 1) if operator == "window_attention" else (1, 3, 1)
            return torch.ones(*heads, 16), torch.ones(heads)

        @staticmethod
        def backward(*_: object) -> tuple[Tensor, ...]:
            launched.append(("backward", list(inside)))
            return tuple(torch.ones(3, 1, 16) for _ in range(3))

    # In the place of the kernels, which a machine without a GPU cannot launch.
    monkeypatch.setattr(
        importlib.import_module(f"kunlun.ops.{operator}"), "kernels", Kernels, raising=False
    )
    op = importlib.import_module(f"kunlun.ops.{operator}.op")
    monkeypatch.setattr(op, "runs_on", lambda *_: "triton")
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    calls = {
        "gdpa": lambda q, k, v: gdpa(q, k, v, offsets, offsets),
        "window_attention": lambda q, k, v: window_attention(q, k, v, offsets, window=1),
        "seed_attention": lambda q, k, v: seed_attention(q, k, v, offsets),
    }
    leaves = [(i * x).requires_grad_() for i in (1, 2, 3)]
    calls[operator](*leaves).sum().backward()
    assert [name for name, _ in launched] == ["forward", "backward"]
    owner = 1 if operator == "seed_attention" else 0  # keys, where seeds could be anyone's
    for _, devices in launched:
        assert [rows[0, 0, 0].item() for rows in devices] == [owner + 1]
