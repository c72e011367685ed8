"""What a run says while it runs: metrics.jsonl, TensorBoard, and lines for whoever watches."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class RunLog:
    """Rows of a run. kind "train": means since the row before; kind "valid": one validation.

    With `resume_step`, rows after that step are dropped first: the resumed run writes them again.
    On a terminal a progress bar, otherwise one plain line a row, both on stderr.
    """

    def __init__(
        self, run: Path, total: int, *, resume_step: int | None = None, quiet: bool = False
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = run / "metrics.jsonl"
        if resume_step is not None:
            _truncate(self.file, resume_step)
        self.rows = self.file.open("a")
        purge = None if resume_step is None else resume_step + 1
        self.board = SummaryWriter(str(run), purge_step=purge)
        self.total, self.quiet = total, quiet
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        if self.console.is_terminal and not quiet:
            columns = (
                *(TextColumn("{task.description}"), BarColumn()),
                *(TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn()),
                TextColumn("{task.fields[text]}"),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("train", total=total, text="")

    def __enter__(self) -> RunLog:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.rows.close()
        self.board.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row with `kind` and `step`; nested numbers become TensorBoard scalars."""
        self.rows.write(json.dumps(row) + "\n")
        self.rows.flush()
        numbers = _flat({k: v for k, v in row.items() if k not in ("kind", "step")})
        for name, value in numbers.items():
            self.board.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        self._show(row)

    def moved(self, step: int) -> None:
        """Advance the progress bar."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step)

    def say(self, text: str) -> None:
        """One line for whoever watches."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _show(self, row: dict[str, Any]) -> None:
        text = line(row)
        if row["kind"] == "train" and self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=row["step"], text=text)
        else:
            self.say(f"{row['kind']:5} {row['step']:>7}/{self.total}  {text}")


def line(row: dict[str, Any]) -> str:
    """The numbers of a row that a person wants to see."""
    if row["kind"] == "valid":
        tasks = row["tasks"].items()
        return "  ".join(f"{t}: NE {_number(m['ne'])} AUC {_number(m['auc'])}" for t, m in tasks)
    ne = " ".join(f"{task} {_number(value)}" for task, value in row["ne"].items())
    parts = [f"loss {row['loss']:.4f}", f"NE {ne}", f"{row['samples_per_s']:,.0f} samples/s"]
    parts.append(f"data wait {row['data_wait']:.0%}")
    if row["mfu"] is not None:
        parts.append(f"MFU {row['mfu']:.1%}")
    return "  ".join(parts)


def read_rows(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, oldest first; a line cut short by a crash is left out."""
    return [r for r in _rows(run / "metrics.jsonl") if kind is None or r["kind"] == kind]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False))
    os.replace(aside, path)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            found[prefix + name] = value
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for text in file.read_text().splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return rows


def _truncate(file: Path, step: int) -> None:
    kept = [json.dumps(row) + "\n" for row in _rows(file) if row["step"] <= step]
    file.write_text("".join(kept))
