"""The process of one cell, started by `kunlun.scaling.jobs`.

Input: the pickled cell and jobs; its end, later, is a Ctrl-C. Output: what went wrong, if anything
did, and nothing else: what a library prints goes to stderr. Exit codes are those of the command
line.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback

from kunlun.errors import KunlunError, UserError


def main() -> int:
    """Train the cell; its line is the result."""
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Whoever started us may be in the background and ignore it; what reaches us is meant for us.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cell, jobs = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_interrupt_at_end_of_input, daemon=True).start()
        if jobs.begin is not None:
            jobs.begin()
        from kunlun.training import source

        cell.work(source.open_data(cell.config.data), jobs.count)
    except KunlunError as error:
        print(error, file=output)
        return error.exit_code
    except OSError as error:  # such as a full disk
        print(f"{error.filename or 'output'}: {error.strerror or error}", file=output)
        return UserError.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=output)
        return 1
    return 0


def _interrupt_at_end_of_input() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would outlive this thread
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
