"""Compiles Triton kernels for Hopper on a machine without a GPU and reads what they use."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
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
    spilled_in_loop: int  # those in the innermost loops with matrix products
    stack: int  # bytes of it
    shared: int  # bytes a program
    threads: int  # a program
    hgmma: int  # matrix instructions of Hopper
    hmma: int  # matrix instructions of older GPUs
    asynchronous: int  # copies into shared memory that do not wait
    instructions: int  # in all

    @property
    def programs(self) -> int:
        """Programs an SM can hold at once."""
        by_registers = REGISTERS // (self.threads * max(self.registers, 24))
        return min(by_registers, SHARED_LIMIT // max(self.shared, 1), 2048 // self.threads)


def argument_types(kernel: triton.JITFunction, dtype: str) -> dict[str, str]:
    """Types of the run-time arguments by what their names say in our kernels.

    Compile-time arguments are in capitals, strides end in _row or _head; rows of `dtype` are all
    tensors but offsets (int64), work lists and codes (int32), parts of sums and statistics.
    """
    numbers = ("heads", "share", "slots", "blocks", "number", "window", "slices", "slice_rows")
    known = {"items": "*i32", "head_codes": "*i32", "lse": "*fp32", "delta": "*fp32"}
    types = {}
    for name in kernel.arg_names:
        if name.isupper():
            continue
        if name in known:
            types[name] = known[name]
        elif name.endswith("offsets"):
            types[name] = "*i64"
        elif name.startswith("part"):
            types[name] = "*fp32"
        elif name.endswith(("scale", "factor")):
            types[name] = "fp32"
        elif name.endswith(("_row", "_head", "_heads")) or name.startswith("num_"):
            types[name] = "i32"
        else:
            types[name] = "i32" if name in numbers else f"*{dtype}"
    return types


def _is_aligned(name: str, kind: str) -> bool:
    """Whether launches find the argument to be a multiple of 16 and let the compiler know."""
    rows = kind.startswith("*") and name not in ("items", "head_codes")
    return rows or name.endswith(("_row", "_head"))


def usage(
    kernel: triton.JITFunction,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    warps: int,
    stages: int,
    folder: Path,
) -> Usage:
    """Compiles `kernel` for sm_90.

    Args:
        types: Triton's name of each run-time argument's type, as argument_types gives them.
        constants: values of the compile-time arguments.
        folder: for the compiled file.
    """
    names = list(kernel.arg_names)
    assert set(names) == {*types, *constants}, set(names) ^ {*types, *constants}
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name in types
            if _is_aligned(name, types[name])
        },
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=HOPPER, options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    resources = _read(cubin, "-res-usage")
    instructions = _instructions(_read(cubin, "-sass"))
    spilled = _places("LDL|STL", instructions)
    products = _places("HGMMA|HMMA", instructions)
    return Usage(
        registers=_number(r"REG:(\d+)", resources),
        spilled=len(spilled),
        spilled_in_loop=len(spilled & _hot(instructions, products)),
        stack=_number(r"STACK:(\d+)", resources),
        shared=compiled.metadata.shared,
        threads=32 * compiled.metadata.num_warps,
        hgmma=len(_places("HGMMA", instructions)),
        hmma=len(_places("HMMA", instructions)),
        asynchronous=len(_places("LDGSTS|UTMALDG", instructions)),
        instructions=len(instructions),
    )


def _instructions(sass: str) -> dict[int, str]:
    """Machine instructions by address."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    return {int(address, 16): text for address, text in lines}


def _places(pattern: str, instructions: Mapping[int, str]) -> set[int]:
    word = re.compile(rf"\b(?:{pattern})\b")
    return {address for address, text in instructions.items() if word.search(text)}


def _hot(instructions: Mapping[int, str], products: set[int]) -> set[int]:
    """Addresses inside the innermost loops that hold matrix products."""
    jumps = re.compile(r"\bBRA(?:\.\w+)* .*?0x([0-9a-f]+)\s*$")
    loops = []
    for end, text in instructions.items():
        jump = jumps.search(text)
        if jump is not None and int(jump.group(1), 16) < end:
            loops.append(range(int(jump.group(1), 16), end + 1))
    loops = [loop for loop in loops if any(place in loop for place in products)]
    innermost = [
        loop
        for loop in loops
        if not any(o != loop and o.start >= loop.start and o.stop <= loop.stop for o in loops)
    ]
    return {address for address in instructions if any(address in loop for loop in innermost)}


def _read(cubin: Path, flag: str) -> str:
    done = subprocess.run(
        [_BIN / "cuobjdump", flag, cubin], capture_output=True, text=True, check=True
    )
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found.group(1))
