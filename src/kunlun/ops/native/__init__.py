"""The C++ library behind the operators on CPU: loading it, and what it can run.

One file an operator (gdpa.h with gdpa_items.h, softmax.h with window_attention.h and
seed_attention.h, called from attention.py; hstu_attention.h, called from hstu.py; norm.h, rotary.h,
gelu.h and adagrad.h, called from rows.py), over small matrix products (product.h) and vector
functions (vector.h), compiled once an instruction set (kernels.cpp) and chosen at run time
(library.cpp). Nothing in it
knows torch: call.py hands over addresses, strides and torch's number of threads.
Results are computed in float32, bit-equal whatever the neighbours of a sample and the number of
threads. Where the machine multiplies bfloat16 itself (vdpbf16ps, AMX tiles), gdpa of bfloat16 does
(gdpa_bf16.h over product_bf16.h and pieces.h): it sums in float32, and rounds activated scores to
bfloat16 for the products that follow.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

from kunlun.ops.registration import constant

DTYPES = (torch.float32, torch.bfloat16)
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
_PRODUCTS = "{} is torch's matrix products; the library has none of its own"
LACKS = {
    "sum_kron": _PRODUCTS.format("sum_kron"),
    "mix_rows": _PRODUCTS.format("mix_rows"),
}
"""The operators that have no part in it, and why."""
ONLY_FLOAT32 = ("row_wise_adagrad",)
"""Those that do not compute bfloat16."""

_PARTS = ("gdpa", "window", "seed", "hstu", "norm", "add_norm", "rotary")
_FUNCTIONS = [f"{part}_{way}" for part in _PARTS for way in ("forward", "backward")]
_FUNCTIONS += ["gelu", "adagrad"]


class Library(NamedTuple):
    """The loaded functions, and the best instruction set of this machine (index into ISAS)."""

    call: dict[str, Callable[[int, bytes], int]]
    isa: int


class Loaded(NamedTuple):
    """The library, or None and why."""

    library: Library | None
    reason: str


@lru_cache(maxsize=1)
def load() -> Loaded:
    """Loads the library once a process."""
    from kunlun.ops.native.build import LIBRARY, stale  # not above: it is run as a module, too

    if stale():
        state = "built from other sources" if LIBRARY.exists() else "not built"
        why = f"the native library is {state}; python -m kunlun.ops.native.build builds it"
        return Loaded(None, why)
    try:
        handle = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return Loaded(None, f"the native library does not load: {error}")
    # Torch's own OpenMP, so that there is one set of threads; without it we run on one.
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    handle.kunlun_set_parallel(ctypes.cast(parallel, ctypes.c_void_p) if parallel else None)
    call = {}
    for name in _FUNCTIONS:
        function = getattr(handle, f"kunlun_{name}")
        function.argtypes = [ctypes.c_int, ctypes.c_char_p]
        call[name] = function
    isa: int = handle.kunlun_best_isa()
    return Loaded(Library(call, isa), f"compiled for {ISAS[isa]}")


def why_not(operator: str, device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why the library cannot run this; None if it can. A dtype of None means float32."""
    if device.type != "cpu":
        return f"the native library runs on cpu and the device is {device.type}"
    if operator in LACKS:
        return LACKS[operator]
    if operator in ONLY_FLOAT32 and dtype not in (None, torch.float32):
        return f"the native {operator} computes float32 and the dtype is {dtype}"
    if dtype is not None and dtype not in DTYPES:
        return f"the native library computes float32 and bfloat16 and the dtype is {dtype}"
    loaded, reason = state()
    return None if loaded else reason


@constant
def state() -> tuple[bool, str]:
    """Whether the library is loaded, and which or why not."""
    library, reason = load()
    return library is not None, reason
