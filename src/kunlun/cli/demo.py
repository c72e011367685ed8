"""`kunlun demo`: `kunlun train demo`, then what it found in plain words."""

from __future__ import annotations

import json

import click

from kunlun.cli.group import json_option, overrides_argument, verb


@verb("kunlun demo", "kunlun demo train.seed=2 name=demo2", name="demo")
@overrides_argument
@json_option
def command(overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the preset `demo` on the embedded stream and say how far it got.

    The labels of the stream are drawn from a known probability, so the lowest normalised entropy
    (NE) that any model could reach is known too. An earlier run of the same name is replaced.
    """
    from kunlun.cli.text import plain
    from kunlun.report.table import table
    from kunlun.training.config import load_run_config
    from kunlun.training.trainer import train

    config = load_run_config("demo", list(overrides))
    run = train(config, overwrite=True, quiet=as_json)
    summary = json.loads((run / "summary.json").read_text())
    if as_json:
        click.echo(json.dumps({"run": str(run), **summary}, indent=1))
        return
    columns = ("ne", "expected_ne", "floor_ne", "auc", "base_rate", "rows")
    rows = [[t, *(plain(m.get(c)) for c in columns)] for t, m in summary["test"].items()]
    click.echo("\n" + table(("test", *columns), rows))
    click.echo(
        "ne 1 is the base rate alone; expected_ne is ne with each label replaced by its true"
    )
    click.echo("probability; floor_ne is that of the truth itself, the lowest that can be reached")
    spent = summary["train"]
    mfu = "-" if spent["mfu"] is None else f"{spent['mfu']:.1%}"
    click.echo(f"\n{spent['samples_per_s']:,.0f} samples/s, MFU {mfu}, run directory {run}")
    click.echo("\nNext:")
    for line in (
        f"kunlun evaluate {run}",
        "kunlun data synth --raw logs",
        "kunlun train base data=synth:demo --dry-run",
    ):
        click.echo(f"  {line}")
