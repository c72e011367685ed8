"""Cells trained one after the other in this process, or several at once in processes of their own.

A worker (`kunlun.scaling.worker`) is told its cell through its input and trains it; the line it
leaves on the disk is the result. Its input stays open until then: the end of it, even because this
process died, means Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kunlun.errors import KunlunError, RunError
from kunlun.scaling.cell import Cell

Line = dict[str, Any]


@dataclass(frozen=True)
class Jobs:
    """How cells are trained: `count` at once. begin: called first in every process of its own.
    lock: descriptor of the lock on OUT, which those processes hold as well: they may outlive this
    one by a checkpoint."""

    count: int = 1
    begin: Callable[[], object] | None = None
    lock: int | None = None


def finish(
    lines: Mapping[Cell, Line | None],
    dataset: Any,
    say: Callable[[str], None],
    done: Callable[[Cell, Line], None],
    jobs: Jobs,
) -> None:
    """Train the cells without a line; `done` is told of each with its line as it ends.

    say: told of every cell as it begins. If one fails the others stop as after Ctrl-C, to go on
    next time. Raises as `Cell.work`; what failed in a process of its own is named by its cell.
    """
    todo: list[tuple[Cell, str]] = []
    for place, (cell, line) in enumerate(lines.items(), start=1):
        title = f"[{place}/{len(lines)}] {cell.label}"
        if line is not None:
            say(f"{title}: finished before")
        else:
            todo.append((cell, f"{title}: training"))
    if jobs.count > 1:
        _at_once(todo, dataset, say, done, jobs)
        return
    for cell, title in todo:
        say(title)
        done(cell, cell.work(dataset))


def _at_once(
    todo: list[tuple[Cell, str]],
    dataset: Any,
    say: Callable[[str], None],
    done: Callable[[Cell, Line], None],
    jobs: Jobs,
) -> None:
    waiting, running = iter(todo), list[_Worker]()
    with _stopped_at_the_end(running):
        while True:
            while len(running) < jobs.count and (following := next(waiting, None)) is not None:
                cell, title = following
                say(title)
                running.append(_Worker(cell, jobs))
            if not running:
                return
            ended, _, _ = select.select(running, [], [])
            for worker in ended:
                worker.close()
                running.remove(worker)
                line = worker.cell.line(dataset)
                if line is None:
                    raise RunError(f"{worker.cell.label}: ended without {worker.cell.file}")
                done(worker.cell, line)


@contextmanager
def _stopped_at_the_end(running: list[_Worker]) -> Iterator[None]:
    """Whoever still runs, because of an error or Ctrl-C, writes a checkpoint and ends; a second
    Ctrl-C does not wait for it."""
    try:
        yield
    finally:
        try:
            for worker in running:
                worker.interrupt()
            for worker in running:
                worker.process.wait()
        finally:
            for worker in running:
                worker.kill()


class _Worker:
    """One cell in a process of its own; `fileno` is ready to read when it ends."""

    def __init__(self, cell: Cell, jobs: Jobs) -> None:
        self.cell = cell
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kunlun.scaling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs.count)),
                 **os.environ},
            pass_fds=() if jobs.lock is None else (jobs.lock,),
            start_new_session=True,  # the terminal's Ctrl-C is this process's to pass on, once
        )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `close` will say why
            self.process.stdin.write(pickle.dumps((cell, jobs)))
            self.process.stdin.flush()

    def fileno(self) -> int:
        """Of its output, which ends with it."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def interrupt(self) -> None:
        """What Ctrl-C is to a run in the foreground."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def kill(self) -> None:
        """At once, if it has not ended by itself."""
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def close(self) -> None:
        """Wait for its end. Raises RunError, or KunlunError if it is no fault of the input."""
        assert self.process.stdout is not None
        with self.process.stdout as out:
            message = out.read().decode().strip()
        code = self.process.wait()
        self.interrupt()
        if code < 0:
            message = f"ended by {signal.Signals(-code).name}; was there too little memory?"
        if code:
            kind = RunError if code == RunError.exit_code else KunlunError
            raise kind(f"{self.cell.label}: {message or f'ended with exit code {code}'}")
