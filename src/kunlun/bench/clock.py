"""Measuring: runs side by side, the machine's two roofs, memory of one call, conditions."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kunlun.training import memory

Runs = Mapping[Any, Callable[[], object]]


class Timing(NamedTuple):
    """Seconds of one run."""

    least: float
    median: float
    repeats: int


wall = time.perf_counter
SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the product that makes the roof of arithmetic
ENOUGH = 10.0  # seconds
COPIED = 2**26  # floats, 256 MiB: more than most caches


def stopwatch(device: torch.device) -> tuple[str, Callable[[], float]]:
    """("cpu" or "wall", clock): the CPU time of this process where one thread computes, since other
    programs do not count then; else the wall clock, after the device has finished."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "cpu", time.process_time

    if device.type == "cpu":
        return "wall", wall

    def finished() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return "wall", finished


def interleaved(
    runs: Runs, clock: Callable[[], float], *, budget: float, most: int = 30
) -> dict[Any, Timing]:
    """Every run in turn, again and again, so that a slow phase of the machine meets all of them.

    A run is repeated at least 3 times (fewer if it has had ENOUGH seconds before), and then until
    it has had `budget` seconds or `most` repeats.
    What was run before the first round (a verification) is the warm-up.
    """
    taken: dict[Any, list[float]] = {name: [] for name in runs}

    def wants(name: Any) -> bool:
        spent = taken[name]
        few = len(spent) < 3 and sum(spent) < ENOUGH
        return few or (sum(spent) < budget and len(spent) < most)

    while any(map(wants, runs)):
        for name in filter(wants, runs):
            start = clock()
            runs[name]()
            taken[name].append(clock() - start)
    return {n: Timing(min(t), statistics.median(t), len(t)) for n, t in taken.items()}


class Roofs:
    """A square matrix product and a copy: what arithmetic and memory of this machine give."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        size = SQUARE[device.type]
        self.a = torch.randn(size, size, device=device).to(dtype)
        self.b = torch.randn(size, size, device=device).to(dtype)
        self.c = torch.empty_like(self.a)
        self.flops = 2 * size**3
        self.source = torch.zeros(COPIED, device=device)
        self.target = torch.zeros_like(self.source)
        self.bytes = 2 * self.source.numel() * 4  # read and written
        self.multiply()
        self.copy()

    def multiply(self) -> Tensor:
        """One product into memory that exists."""
        return torch.mm(self.a, self.b, out=self.c)

    def copy(self) -> Tensor:
        """One copy into memory that exists."""
        return self.target.copy_(self.source)


class Memory:
    """Largest extra memory during one call: `with Memory(device) as m: ...; m.peak`, bytes or None.

    On Linux the rise of the process's peak resident size (VmHWM, reset through
    /proc/self/clear_refs) over its size before, after glibc has handed its free memory back: all
    pages that the call touched for results, scratch and what autograd keeps. On CUDA torch's own
    count. Elsewhere None.
    """

    how = "rise of VmHWM (reset by /proc/self/clear_refs) over VmRSS, after malloc_trim"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None

    def __enter__(self) -> Self:
        counted = memory.start_peak(self.device)
        self.before = memory.held(self.device) if counted else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            self.peak = max(memory.peak(self.device) - self.before, 0)


def allocator() -> dict[str, Any]:
    """Whether the C library keeps freed memory for the next tensor: measured, not asked for.

    Page faults of writing a 40 MiB tensor after one of 64 MiB was freed. Where the pages went back
    to the system (glibc's default for tensors over 32 MiB), every one of them faults again.
    """
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"keeps_freed_memory": faults < 64, "page_faults_of_40_MiB": faults}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float:
    """Load average of the last minute, other programs included."""
    return round(os.getloadavg()[0], 2)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch (and the native library) with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def conditions(device: torch.device) -> dict[str, Any]:
    """On what and how a report was measured."""
    from kunlun import __version__
    from kunlun.ops import native
    from kunlun.training import environment

    return {
        "kunlun": __version__,
        **environment.describe(device),
        "native": native.state()[1],
        "clock": stopwatch(device)[0],
        "allocator": allocator(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load": load(),
    }
