"""Compiles Triton kernels for Hopper on a machine without a GPU and reads what they use."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_LIMIT = 227 * 1024  # bytes a program may use of an SM's shared memory
REGISTERS = 65536  # of an SM

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Usage(NamedTuple):
    """What one compiled kernel uses."""

    registers: int  # a thread
    spilled: int  # instructions that store to or load from a thread's own stack
    stack: int  # bytes of it
    shared: int  # bytes a program
    threads: int  # a program
    hgmma: int  # matrix instructions of Hopper
    hmma: int  # matrix instructions of older GPUs
    asynchronous: int  # copies into shared memory that do not wait

    @property
    def programs(self) -> int:
        """Programs an SM can hold at once."""
        by_registers = REGISTERS // (self.threads * max(self.registers, 24))
        return min(by_registers, SHARED_LIMIT // max(self.shared, 1), 2048 // self.threads)


def usage(
    kernel: triton.JITFunction,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    aligned: Iterable[str],
    warps: int,
    stages: int,
    folder: Path,
) -> Usage:
    """Compiles `kernel` for sm_90.

    Args:
        types: Triton's name of each run-time argument's type: "*bf16", "i32", "fp32".
        constants: values of the compile-time arguments.
        aligned: arguments known to be multiples of 16, as launches find most strides to be.
        folder: for the compiled file.
    """
    names = list(kernel.arg_names)
    assert set(names) == {*types, *constants}, set(names) ^ {*types, *constants}
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=HOPPER, options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    resources = _read(cubin, "-res-usage")
    instructions = _read(cubin, "-sass")
    return Usage(
        registers=_number(r"REG:(\d+)", resources),
        spilled=len(re.findall(r"\b(?:LDL|STL)\b", instructions)),
        stack=_number(r"STACK:(\d+)", resources),
        shared=compiled.metadata.shared,
        threads=32 * compiled.metadata.num_warps,
        hgmma=len(re.findall(r"\bHGMMA\b", instructions)),
        hmma=len(re.findall(r"\bHMMA\b", instructions)),
        asynchronous=len(re.findall(r"\b(?:LDGSTS|UTMALDG)\b", instructions)),
    )


def _read(cubin: Path, flag: str) -> str:
    done = subprocess.run(
        [_BIN / "cuobjdump", flag, cubin], capture_output=True, text=True, check=True
    )
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found.group(1))
