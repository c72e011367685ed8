"""`kunlun bench model`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import json_option, print_json, verb


@verb(
    "kunlun bench model",
    "kunlun bench model --json --out benchmarks/results > model.json",
    "kunlun bench model --table benchmarks/results/model.json",
    name="model",
)
@click.option("--preset", default="base", show_default=True)
@click.option("--setting", "settings", multiple=True, help="short, long.  [default: both]")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="[default: the preset's]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write model.json here.")
@click.option(
    "--table", type=click.Path(path_type=Path), help="Print a model.json as Markdown; stop."
)
@json_option
def command(
    preset: str,
    settings: tuple[str, ...],
    precision: str | None,
    threads: int,
    out: Path | None,
    table: Path | None,
    as_json: bool,
) -> None:
    """Time training steps: native, portable, and the same weights padded and eager.

    On random batches of short and of long histories, after all three gave the same logits and
    gradients. Says what each module's share and speed predict for the step.
    """
    from kunlun.bench import tables
    from kunlun.bench.report_file import read_report, rounded, write_report

    if table is not None:
        click.echo(tables.model_table(read_report(table, "settings")))
        return
    from kunlun.bench.model import SETTINGS, bench_model

    found = bench_model(
        preset=preset,
        settings=settings or tuple(SETTINGS),
        precision=precision,
        threads=threads,
        say=lambda line: click.echo(line, err=as_json),
    )
    report = rounded(found)
    if out is not None:
        write_report(report, out / "model.json")
    if as_json:
        print_json(report)
    else:
        click.echo("\n" + tables.model_table(report))
