"""The most memory that a piece of work held at once: what torch allocated on a GPU; on the CPU, on
Linux, the resident set of the whole process, its libraries included."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start_peak(device: torch.device) -> bool:
    """Forget the peak so far; False where the system does not count one. On the CPU freed memory
    goes back to the system first, or the peak would be that of the largest piece of work before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")  # proc(5): the peak of the resident set starts anew
        _status("VmHWM")
    except (OSError, ValueError):
        return False
    return True


def peak(device: torch.device) -> int:
    """Bytes, since a `start_peak` that was True."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def held(device: torch.device) -> int:
    """Bytes at this moment, where `start_peak` is True."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS")


def _status(key: str) -> int:
    (line,) = [n for n in STATUS.read_text().splitlines() if n.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024
