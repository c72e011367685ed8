"""`kunlun data prepare`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import json_option, print_json, verb


@verb(
    "kunlun data prepare logs/schema.yaml --out datasets/mine",
    "kunlun data prepare today.yaml --root /logs/today --like datasets/mine --out datasets/today",
    name="prepare",
)
@click.argument("schema", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New directory.")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="Reuse this dataset's vocabularies and transforms, so that its models fit.",
)
@click.option(
    "--root", type=click.Path(path_type=Path), help="Where the tables lie; default: the schema's."
)
@json_option
def command(schema: Path, out: Path, like: Path | None, root: Path | None, as_json: bool) -> None:
    """Turn raw logs into a dataset directory.

    Vocabularies and transforms are fitted on the training days only. Nothing stays behind if the
    logs contradict the schema.
    """
    from kunlun.data.prepare import prepare

    manifest = prepare(schema, out, like=like, root=root)
    if as_json:
        print_json(manifest)
    else:
        click.echo(f"wrote {out}; look at it: kunlun data inspect {out}")
