"""`kunlun data inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import json_option, print_json, verb


@verb(
    "kunlun data inspect datasets/mine", "kunlun data inspect datasets/mine --json", name="inspect"
)
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Say what a dataset directory holds."""
    from kunlun.data.inspect import inspect

    found = inspect(directory)
    if as_json:
        print_json(found)
    else:
        from kunlun.cli.text import outline

        click.echo(outline(found))
