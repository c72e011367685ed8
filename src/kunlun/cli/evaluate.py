"""`kunlun evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import data_argument, data_of, json_option, print_json, verb


@verb(
    "kunlun evaluate runs/small",
    "kunlun evaluate runs/small data=datasets/today --split test --json",
    "kunlun evaluate runs/base --against runs/small",
    name="evaluate",
)
@click.argument("run", type=click.Path(path_type=Path))
@data_argument(required=False)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another run: RUN minus OTHER on the same rows, with 95 % intervals.",
)
@click.option(
    "--split", default="test", type=click.Choice(["train", "valid", "test"]), show_default=True
)
@json_option
def command(
    run: Path, overrides: tuple[str, ...], against: Path | None, split: str, as_json: bool
) -> None:
    """Measure a trained run; data=DIR names other data than it was trained on."""
    from kunlun.cli.text import outline
    from kunlun.training.compare import compare
    from kunlun.training.evaluate import evaluate, evaluation_name

    data = data_of(overrides)
    if against is not None:  # first, so that a mistyped name is noticed at once
        evaluate(against, data, split)
    found = evaluate(run, data, split)
    if against is not None:
        found = compare(against, run, evaluation_name(data, split))
    if as_json:
        print_json(found)
        return
    if against is not None:
        click.echo(f"a is {against}, b is {run}; low to high: 95 % interval of b - a")
    click.echo(outline(found["tasks"]))
