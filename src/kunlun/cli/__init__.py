"""The command line: one thin file a verb, loaded only when that verb is asked for.

Exit codes: 0 ok, 1 a fault of ours or of the arithmetic, 2 something the user can change,
130 interrupted. Whatever the cause, a user error is one line on stderr.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import traceback
from collections.abc import Sequence

import click

from kunlun.cli.group import LazyGroup, Verb
from kunlun.errors import KunlunError

VERBS = (
    Verb("demo", "start", "train the embedded example end to end (minutes, CPU)"),
    Verb("doctor", "start", "versions, devices, which backend each operator uses and why"),
    Verb("data", "data", "prepare | inspect | validate | synth"),
    Verb("train", "learn", "train a preset or a file of yours; --dry-run prints the plan"),
    Verb("evaluate", "learn", "metrics of a run on a split, also against another run"),
    Verb("predict", "learn", "probabilities of a run for a dataset, labelled or not"),
    Verb("compare", "learn", "models side by side, at one size if asked; ablations of kunlun"),
    Verb("bench", "measure", "ops | model"),
)

root = LazyGroup(
    "kunlun",
    "kunlun: ranking models that read event histories",
    VERBS,
    module="kunlun.cli",
    tail="Try: kunlun demo    kunlun train base data=DIR --dry-run    kunlun VERB --help",
)

# What the file system says about the user's paths, not about our code.
_PATH_TROUBLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ELOOP),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG),
}


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h; the first one's -1 is "never"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    # Threads that spin while they wait made a step of `demo` fifty times slower on two cores that
    # other processes used as well. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    sys.exit(run(arguments))


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next tensor; says whether it does from now on.

    By default every tensor over 32 MiB is new pages, and touching these is up to a tenth of a
    training step on CPU (docs/benchmarks.md). Other C libraries are left as they are, and so is one
    that the user tuned, by GLIBC_TUNABLES or a MALLOC_..._ variable.
    GLIBC_TUNABLES=glibc.malloc.tcache_count=7 changes nothing and so keeps the default; setting a
    threshold to its default value would not, for then glibc stops adapting it.
    """
    if _malloc_is_tuned():
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  a function of glibc alone
        done = [libc.mallopt(_M_MMAP_MAX, 0), libc.mallopt(_M_TRIM_THRESHOLD, -1)]
    except (OSError, TypeError, AttributeError):
        return False
    return done == [1, 1]


def _malloc_is_tuned() -> bool:
    older = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return older or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


def run(arguments: Sequence[str] | None = None) -> int:
    """Exit code of one command line; every failure has been printed on stderr."""
    try:
        code = root.main(arguments, prog_name="kunlun", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except KunlunError as error:
        return _fail(str(error), error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "kunlun"
        return _fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _PATH_TROUBLE:
            return _fail(f"{error.filename or 'output'}: {error.strerror}", 2)
        traceback.print_exc()
        return _fail(
            f"{type(error).__name__}: {error}; a fault of kunlun, not of your input. "
            "Please report it with the lines above and the output of `kunlun doctor`.",
            1,
        )


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
