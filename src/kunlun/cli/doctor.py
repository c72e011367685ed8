"""`kunlun doctor`."""

from __future__ import annotations

import click

from kunlun.cli.group import json_option, print_json, verb


@verb("kunlun doctor", "kunlun doctor --json > env.json", name="doctor")
@json_option
def command(as_json: bool) -> None:
    """Say what is installed, what runs here, and why."""
    from kunlun.cli.environment import describe
    from kunlun.cli.text import outline
    from kunlun.report.table import table

    found = describe()
    if as_json:
        print_json(found)
        return
    click.echo(outline({key: found[key] for key in ("versions", "devices")}))
    header = ("operator", "device", "backend", "why")
    click.echo("\n" + table(header, [[row[key] for key in header] for row in found["operators"]]))
    for extra in found["extras"]:
        if extra["missing"]:
            click.echo(f"\nextra '{extra['name']}' lacks {', '.join(extra['missing'])}")
            click.echo(f"  {extra['install']}")
