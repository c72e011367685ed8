"""The Triton backend: what it can run, and what its kernels share.

Nothing here imports Triton before a kernel is asked for. `activations` and `tiles` hold device
functions and are imported by the operators' `kernels` modules only, which in turn are imported
when an operator runs on this backend.

With TRITON_INTERPRET=1 in the environment when the kernels are first imported they run in Triton's
interpreter, slowly and on CPU tensors as well: that is how they are tested without a GPU.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from kunlun.ops.registration import constant

# Bytes of shared memory that a program of the largest shipped tile takes, as compiled for sm_90.
SHARED_MEMORY = {
    "gdpa": 224 * 1024,
    "window_attention": 128 * 1024,
    "seed_attention": 137 * 1024,
}
OPERATORS = tuple(SHARED_MEMORY)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_WIDTH = 128  # channels a head; wider tiles do not fit the registers
OLDEST = (3, 6)
OLDEST_GPU = (8, 0)


def why_not(
    operator: str, device: torch.device, dtype: torch.dtype | None, width: int | None = None
) -> str | None:
    """Why the kernels cannot run this; None if they can. Unknown dtype or width: any that fits."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"the triton kernels need CUDA and the device is {device.type}"
    if operator not in OPERATORS:
        return f"this release has no triton {operator}"
    if dtype is not None and dtype not in DTYPES:
        return f"the triton kernels compute float32, bfloat16 and float16 and the dtype is {dtype}"
    if width is not None and width > MAX_WIDTH:
        return f"the triton kernels take heads of {MAX_WIDTH} channels at most, not {width}"
    if device.type == "cpu":
        return None
    why: str | None = _why_not_installed() or _why_not_gpu(device.index, SHARED_MEMORY[operator])
    return why


@constant
def interpreted() -> bool:
    """Whether this process runs the kernels in Triton's interpreter."""
    if _why_not_installed() is not None:
        return False
    tiles = importlib.import_module("kunlun.ops.triton.tiles")
    interpreted: bool = tiles.INTERPRETED
    return interpreted


@constant
def version() -> str:
    """What `choose` gives as its reason when it picks this backend."""
    return f"triton {_installed().version}"


class _Installed(NamedTuple):
    """The version that is there, or why it is no use."""

    version: str
    problem: str | None


@lru_cache(maxsize=1)
def _installed() -> _Installed:
    try:
        version = str(importlib.import_module("triton").__version__)
    except ImportError as error:
        return _Installed("", f"triton is not installed ({error})")
    except Exception as error:  # of a broken installation
        return _Installed("", f"triton cannot be imported ({type(error).__name__}: {error})")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        return _Installed(version, f"the kernels need triton {needed} or newer, not {version}")
    return _Installed(version, None)


@constant
def _why_not_installed() -> str | None:
    return _installed().problem


@constant
def _why_not_gpu(index: int | None, shared: int) -> str | None:
    if torch.version.hip is not None:
        return "the triton kernels are written for NVIDIA GPUs"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_GPU:
        have, need = (".".join(map(str, c)) for c in (capability, OLDEST_GPU))
        return f"the triton kernels need compute capability {need} and this GPU has {have}"
    where = torch.cuda.current_device() if index is None else index
    properties: Any = torch.cuda.get_device_properties(where)  # a CPU build's stubs lack fields
    available = int(properties.shared_memory_per_block_optin)
    if available < shared:
        return (
            f"the triton tiles need {shared // 1024} KB of shared memory and this GPU has "
            f"{available // 1024} KB"
        )
    return None
