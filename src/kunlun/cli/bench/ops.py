"""`kunlun bench ops`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import json_option, print_json, verb


@verb(
    "kunlun bench ops --only gdpa --shapes B --dtype float32",
    "kunlun bench ops --json --out benchmarks/results > ops.json",
    "kunlun bench ops --table benchmarks/results/ops.json",
    name="ops",
)
@click.option("--only", multiple=True, help="An operator; may be given again.  [default: all]")
@click.option("--shapes", multiple=True, help="A to D or train-*; again for more.  [default: A-D]")
@click.option("--dtype", "dtypes", multiple=True, help="float32, bfloat16.  [default: both]")
@click.option("--ways", multiple=True, help="native, portable, triton, padded, sdpa, flex, ...")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--sweep/--no-sweep", default=True, help="Also time against length, up to 4096 rows.")
@click.option("--out", type=click.Path(path_type=Path), help="Write ops.json and ops.png here.")
@click.option(
    "--table",
    type=click.Path(path_type=Path),
    help="Print an ops.json (or the cases named) as Markdown; stop.",
)
@json_option
def command(
    only: tuple[str, ...],
    shapes: tuple[str, ...],
    dtypes: tuple[str, ...],
    ways: tuple[str, ...],
    threads: int,
    device: str,
    sweep: bool,
    out: Path | None,
    table: Path | None,
    as_json: bool,
) -> None:
    """Time every operator beside the padded path and torch's attentions.

    Each result and gradient is first compared with float64; a wrong one is not timed. A whole run
    takes twenty minutes on one core. Times are CPU time where one thread computes.
    """
    from kunlun.bench import tables
    from kunlun.bench.report_file import read_report, rounded, write_report

    if table is not None:
        click.echo(tables.ops_table(read_report(table, "cases"), only, shapes, dtypes))
        return
    from kunlun.bench.cases import OPERATORS, WAYS
    from kunlun.bench.ops import DTYPES, bench_ops
    from kunlun.bench.shapes import DEFAULT, SWEEP

    found = bench_ops(
        only=only or OPERATORS,
        shapes=shapes or DEFAULT,
        dtypes=dtypes or tuple(DTYPES),
        ways=ways or WAYS,
        threads=threads,
        device=device,
        sweep=SWEEP if sweep else (),
        say=lambda line: click.echo(line, err=as_json),
    )
    report = rounded(found)
    if out is not None:
        from kunlun.report.figures import draw_operators

        write_report(report, out / "ops.json")
        draw_operators(report, out / "ops.png")
    if as_json:
        print_json(report)
    else:
        click.echo("\n" + tables.ops_table(report))
