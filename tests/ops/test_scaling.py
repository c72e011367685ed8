"""Window attention on long sequences: time and memory in proportion to length, by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kunlun.bench import clock
from kunlun.cli import keep_freed_memory
from kunlun.ops import window_attention
from tests.ops.helpers import BACKENDS, normal, offsets_of

LENGTHS = (2048, 4096, 8192, 16384)  # quadratic work would take 64 times as long at the last
HEADS, WIDTH, WINDOW = 2, 64, 64
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def kept_memory() -> None:
    """As in every run of the command line: else the system clears new pages for tensors beyond
    some size alone, which is the allocator's time and not ours."""
    keep_freed_memory()


def training(length: int, backend: str) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of one sequence, ready to be called."""
    leaves = [normal(length, HEADS, WIDTH, seed=i).requires_grad_() for i in range(3)]
    offsets, outer = offsets_of([length]), normal(length, HEADS, WIDTH, seed=3)

    def run() -> tuple[Tensor, ...]:
        out = window_attention(*leaves, offsets, window=WINDOW, backend=backend)
        return torch.autograd.grad(out, leaves, outer)

    return run


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_of_window_attention_grows_with_length(backend: str) -> None:
    with clock.threads(1):
        runs = {length: training(length, backend) for length in LENGTHS}
        for warm_up in runs.values():
            warm_up()
        # CPU time, in turns; a busy machine makes some runs slower, and hardly all of a length
        timings = clock.interleaved(runs, clock.stopwatch(CPU)[1], budget=0.5)
    times = [timings[length].least for length in LENGTHS]
    exponent = math.log(times[-1] / times[0]) / math.log(LENGTHS[-1] / LENGTHS[0])
    assert exponent <= 1.15, times


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_of_window_attention_grows_with_length(backend: str) -> None:
    peaks = []
    for length in LENGTHS[1:]:  # at the first, what the kernel does not count at once weighs
        run = training(length, backend)
        run()
        with clock.Memory(CPU) as memory:
            run()
        if memory.peak is None:
            pytest.skip("no /proc/self/clear_refs")
        peaks.append(memory.peak)
    results = 4 * LENGTHS[-1] * HEADS * WIDTH * 4  # bytes of the output and three gradients
    assert peaks[-1] > 0.9 * results
    assert peaks[-1] <= 1.2 * LENGTHS[-1] / LENGTHS[1] * peaks[0], peaks
