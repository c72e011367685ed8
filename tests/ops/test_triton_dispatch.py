"""When the dispatch takes the Triton kernels, and what it says when it does not."""

from __future__ import annotations

import pytest
import torch

from kunlun.ops import Choice, choose, triton


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
    assert choose("gdpa", device="cuda:0") == Choice("triton", "triton 3.7.1")
    monkeypatch.setattr(triton, "_installed", lambda: triton._Installed("", "not there"))
    assert reason() == "not there"
