"""A group of verbs that are imported only when chosen, and what their files share.

`import torch` costs seconds; `kunlun --help` and a mistyped verb must answer at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Verb(NamedTuple):
    """One line of the help; the command is `command` in MODULE.name."""

    name: str
    section: str
    help: str


class LazyGroup(click.Group):
    """Verbs by section; the file of a verb is imported when the verb runs."""

    def __init__(
        self, name: str, title: str, verbs: Sequence[Verb], *, module: str, tail: str
    ) -> None:
        super().__init__(name, help=title, invoke_without_command=True, callback=_help_if_alone)
        self.title, self.verbs, self.module, self.tail = title, verbs, module, tail
        if name == "kunlun":
            from kunlun import __version__

            click.version_option(__version__, message="kunlun %(version)s")(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, without importing anything."""
        return [verb.name for verb in self.verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{self.module}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a nearer miss for a mistyped verb."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise click.UsageError(f"no verb '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The whole house on one screen."""
        lines, last = [self.title, ""], ""
        for verb in self.verbs:
            section = verb.section if verb.section != last else ""
            lines.append(f"  {section:8}{verb.name:10}{verb.help}")
            last = verb.section
        formatter.write("\n".join([*lines, "", self.tail, ""]))


def _help_if_alone() -> None:
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def verb(*examples: str, name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """`click.command` whose help ends in examples."""
    text = "\n".join(["\b", "Examples:", *(f"  {line}" for line in examples)])
    return click.command(name=name, epilog=text)


def json_option(function: F) -> F:
    """--json, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(
        function
    )


def like_option(function: F) -> F:
    """--like DIR, as the argument `like`."""
    return click.option(
        "--like",
        type=click.Path(path_type=Path),
        help="Reuse this dataset's vocabularies and transforms, so that its models fit.",
    )(function)


def warn(messages: Sequence[str]) -> None:
    """One line each on stderr."""
    for message in messages:
        click.echo(f"warning: {message}", err=True)


def data_argument(*, required: bool) -> Callable[[F], F]:
    """data=DIR, as the argument `overrides` for `data_of`."""
    return click.argument(
        "overrides", nargs=-1, required=required, metavar="data=DIR" if required else "[data=DIR]"
    )


def overrides_argument(function: F) -> F:
    """[key.sub=value ...], as the argument `overrides`."""
    return click.argument("overrides", nargs=-1, metavar="[key.sub=value ...]")(function)


def print_json(value: Any) -> None:
    """Strict JSON: a NaN would be a fault, undefined numbers are null."""
    click.echo(json.dumps(value, indent=1, allow_nan=False, default=str))


def data_of(overrides: Sequence[str]) -> str | None:
    """The DIR of `data=DIR`, the only key that evaluate and predict take."""
    found = None
    for text in overrides:
        key, equals, value = text.partition("=")
        if key != "data" or not equals or not value:
            raise click.UsageError(f"'{text}' is not data=DIR, the only key this verb takes")
        found = value
    return found
