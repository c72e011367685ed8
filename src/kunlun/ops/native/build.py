"""Compiles the native library with the system's C++ compiler: python -m kunlun.ops.native.build

Standard library only, and importable by path: the package's build hook runs it where neither
torch nor kunlun is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = SOURCES / "libkunlun.so"

# -ffast-math would make the whole process flush small numbers to zero, from loading on.
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fno-math-errno", "-ffp-contract=fast"),
    *("-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"),
)
_AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
_VECTORS = (*_AVX2, *_AVX512, "-mprefer-vector-width=512")
X86 = {"avx512": _VECTORS, "avx2": _AVX2}
# Of these only what takes bfloat16; left out where the compiler or its assembler is too old.
_BF16 = ("-mavx512bf16",)
X86_BF16 = {"avx512_bf16": _BF16, "amx": (*_BF16, "-mamx-tile", "-mamx-bf16")}
_PROBES = {
    "avx512_bf16": "vdpbf16ps %zmm0, %zmm0, %zmm0",
    "amx": "tdpbf16ps %tmm0, %tmm1, %tmm2",
}


class BuildError(Exception):
    """Why there is no library; what the compiler said."""


def compiler() -> list[str]:
    """The command of $CXX, or of the first compiler found."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found (c++, g++ or clang++ in PATH, or $CXX)")


def signature() -> bytes:
    """What a library of these sources holds: their hash, so that no other one is ever called."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), Path(__file__)]):
        digest.update(source.read_bytes())
    return b"kunlun-sources-" + digest.hexdigest()[:32].encode()


def stale(library: Path = LIBRARY) -> bool:
    """Whether the library is missing or was built from other sources."""
    return not library.exists() or signature() not in library.read_bytes()


def build(library: Path = LIBRARY) -> None:
    """Compiles every instruction set side by side and links; replaces `library` at once."""
    command = [*compiler(), *FLAGS]
    kinds: dict[str, tuple[str, ...]] = {"baseline": ()}
    bf16: dict[str, tuple[str, ...]] = {}
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        out = Path(folder)
        if platform.machine() in ("x86_64", "AMD64"):
            kinds |= X86
            bf16 = {k: flags for k, flags in X86_BF16.items() if _knows(command, k, out)}
        jobs: list[list[str | Path]] = [
            [*command, f"-DKUNLUN_ISA={kind}", *flags, "-c", "kernels.cpp", "-o", out / f"{kind}.o"]
            for kind, flags in kinds.items()
        ]
        for kind, flags in bf16.items():
            words = [*command, f"-DKUNLUN_ISA={kind}", *_VECTORS, *flags]
            jobs.append([*words, "-c", "kernels_bf16.cpp", "-o", out / f"{kind}.o"])
        holds = [f'-DKUNLUN_SIGNATURE="{signature().decode()}"']
        holds += [f"-DKUNLUN_HAS_{kind.upper()}" for kind in bf16]
        jobs.append([*command, *holds, "-c", "library.cpp", "-o", out / "library.o"])
        _run(jobs)
        objects = sorted(out.glob("*.o"))
        _run([[*compiler(), "-shared", *objects, "-o", out / "linked.so"]])
        os.replace(out / "linked.so", library)


def _knows(command: list[str], kind: str, folder: Path) -> bool:
    """Whether compiler and assembler take the flags and the instructions of X86_BF16[kind]."""
    probe = folder / "probe.cpp"
    probe.write_text(f'void f() {{ asm("{_PROBES[kind]}"); }}\n')
    words = [*command, *X86_BF16[kind], "-c", str(probe), "-o", str(folder / "probe.out")]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False  # _run says why


def _run(commands: list[list[str | Path]]) -> None:
    running: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            words = [str(word) for word in command]
            running.append(subprocess.Popen(words, cwd=SOURCES, stderr=subprocess.PIPE, text=True))
    except OSError as error:
        raise BuildError(f"{commands[0][0]} does not start: {error}") from error
    finally:
        said = [process.communicate()[1] for process in running]
    for command, process, text in zip(commands, running, said, strict=True):
        if process.returncode:
            raise BuildError(f"{shlex.join(map(str, command))} failed:\n{text.strip()}")


def main() -> int:
    """Builds where the sources changed. Without a compiler it says so and goes on."""
    if not stale():
        return 0
    try:
        build()
    except BuildError as error:
        print(f"kunlun runs without its native library: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
