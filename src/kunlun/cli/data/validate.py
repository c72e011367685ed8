"""`kunlun data validate`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import verb


@verb(
    "kunlun data validate logs/schema.yaml",
    "kunlun data validate schema.yaml --root /logs/today",
    name="validate",
)
@click.argument("schema", type=click.Path(path_type=Path))
@click.option(
    "--root", type=click.Path(path_type=Path), help="Where the tables lie; default: the schema's."
)
def command(schema: Path, root: Path | None) -> None:
    """Check a schema and every table it names; write nothing."""
    from kunlun.data.validate import validate

    validate(schema, root=root)
    click.echo(f"{schema}: ok")
