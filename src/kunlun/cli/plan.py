"""The plan of a dry run on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from kunlun.training.plan import Plan

WIDTH = 100  # where the output is no terminal, so that a pasted plan does not depend on one


def show(plan: Plan) -> None:
    """Print modules, memory and savings."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    columns = Table(title=f"{plan.name} on {plan.data}", title_justify="left")
    columns.add_column("module", no_wrap=True)
    for name in ("parameters", "FLOPs a sample", "share"):
        columns.add_column(name, justify="right", no_wrap=True)
    for row in plan.rows:
        columns.add_row(row.module, f"{row.parameters:,}", _flops(row.flops), f"{row.share:.1%}")
    columns.add_section()
    columns.add_row("all", f"{plan.parameters:,}", _flops(plan.flops), "forward; training: x 3")
    console.print(columns)
    total = _bytes(sum(plan.memory.values()))
    console.print(f"memory at batch size {plan.batch_size}, estimated: {total}")
    for what, size in plan.memory.items():
        console.print(f"  {what:28}{_bytes(size):>12}")
    for what, share in plan.saved.items():
        console.print(f"{what} saves {share:.1%} of the forward FLOPs")


def _flops(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def _bytes(value: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value / 2**10:.1f} KiB"
