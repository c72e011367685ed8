"""`kunlun data validate`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import json_option, like_option, print_json, verb, warn


@verb(
    "kunlun data validate logs/schema.yaml",
    "kunlun data validate schema.yaml --root /logs/today --like datasets/mine",
    name="validate",
)
@click.argument("schema", type=click.Path(path_type=Path))
@like_option
@click.option(
    "--root", type=click.Path(path_type=Path), help="Where the tables lie; default: the schema's."
)
@json_option
def command(schema: Path, like: Path | None, root: Path | None, as_json: bool) -> None:
    """Check a schema and every table it names; write nothing."""
    from kunlun.data.validate import validate

    manifest = validate(schema, root=root, like=like)
    warn(manifest.get("warnings", []))
    if as_json:
        print_json(manifest)
    else:
        rows = ", ".join(f"{name} {part['rows']:,}" for name, part in manifest["splits"].items())
        click.echo(f"{schema}: ok; rows: {rows}")
