"""On what a run ran: versions, device, peak arithmetic. Written to env.json."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from typing import Any

import torch

from kunlun.errors import BackendError
from kunlun.features.batch import Batch

PEAK = {  # dense FLOP/s per GPU by vendor data sheet: bf16 with tensor cores, fp32 without
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A10": (125e12, 31e12),
    "L40S": (362e12, 92e12),
    "L4": (121e12, 30e12),
    "RTX 4090": (165e12, 83e12),
    "B200": (2250e12, 80e12),
}


def pick_device(name: str) -> torch.device:
    """auto -> cuda if there is one. Raises BackendError if the named device is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendError(f"train.device '{name}' is no device; use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"train.device '{name}' is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"train.device is '{name}', but torch sees no CUDA device; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BackendError(f"train.device is '{name}', but there are {count} CUDA devices, from 0")
    return device


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy; to a GPU from page-locked memory, since only then the CPU need not wait for it."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a matrix product can reach: the data sheet's for known GPUs, else measured.

    The measurement is the best of a few products of 512 to 4096 square, with the threads torch has
    now; it takes some ten milliseconds where the device knows the dtype, a second in bfloat16 on a
    CPU that does not, and leaves the random state alone.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (bf16, fp32) in PEAK.items():
            if re.search(rf"\b{known}\b", name):  # an A10G is no A10
                return bf16 if dtype == torch.bfloat16 else fp32
    size = 4096 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        wait(device)
        started = time.perf_counter()
        a @ a
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, device, CPU, threads and the git commit of the working directory, if any."""
    packages = ("kunlun-rec", "torch", "numpy", "pyarrow", "torchmetrics", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
