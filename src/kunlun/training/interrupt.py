"""Ctrl-C as a request: the loop stops between two steps, where a checkpoint is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Raised by the loop itself, between two steps: everything it holds is whole."""


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """The event is set by the first Ctrl-C (SIGINT); a second one is a plain KeyboardInterrupt.

    Where SIGINT is ignored, as by what a shell's script put in the background, it stays so.
    """
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if before == signal.SIG_IGN or not in_main_thread:  # others may not set signal handlers
        yield asked
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
