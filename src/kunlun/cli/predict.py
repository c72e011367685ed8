"""`kunlun predict`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import data_argument, data_of, verb
from kunlun.errors import DataError


@verb("kunlun predict runs/small data=datasets/today --out scores.parquet", name="predict")
@click.argument("run", type=click.Path(path_type=Path))
@data_argument(required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Parquet file.")
@click.option(
    "--split", type=click.Choice(["train", "valid", "test"]), help="Only this one.  [default: all]"
)
def command(run: Path, overrides: tuple[str, ...], out: Path, split: str | None) -> None:
    """Write the run's probability of every label for every row of data=DIR, labelled or not."""
    from kunlun.training.evaluate import predict

    data = data_of(overrides)
    if out.suffix != ".parquet":
        raise DataError("predictions are Parquet; expected a name that ends in .parquet", file=out)
    click.echo(f"wrote {predict(run, data, out, split)}")
