"""`kunlun data prepare`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import json_option, like_option, print_json, verb, warn


@verb(
    "kunlun data prepare logs/schema.yaml --out datasets/mine",
    "kunlun data prepare today.yaml --root /logs/today --like datasets/mine --out datasets/today",
    name="prepare",
)
@click.argument("schema", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New directory.")
@like_option
@click.option(
    "--root", type=click.Path(path_type=Path), help="Where the tables lie; default: the schema's."
)
@json_option
def command(schema: Path, out: Path, like: Path | None, root: Path | None, as_json: bool) -> None:
    """Turn raw logs into a dataset directory.

    Vocabularies and transforms are fitted on the training days only. Nothing stays behind if the
    logs contradict the schema.

    With --like, today's logs become readable for the models of an earlier dataset. Labels and
    weights may be absent, train and valid empty; the files of the earlier days must still be among
    the tables, because histories and counters are made of them.
    """
    from kunlun.data.prepare import prepare

    manifest = prepare(schema, out, like=like, root=root)
    warn(manifest.get("warnings", []))
    if as_json:
        print_json(manifest)
    else:
        click.echo(f"wrote {out}; look at it: kunlun data inspect {out}")
