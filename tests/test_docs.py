"""The reference pages say what the code says."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

from kunlun.cli import VERBS, root
from kunlun.cli.bench import VERBS as BENCH_VERBS
from kunlun.cli.data import VERBS as DATA_VERBS
from kunlun.config import parse
from kunlun.features import schema

ROOT = Path(__file__).parent.parent
SCHEMA_PAGE = (ROOT / "docs" / "schema.md").read_text()
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {
    "Top level": schema.Schema,
    **{kind.__name__: kind for kind in (schema.Tables, schema.Table, schema.Split, schema.Label)},
    **{kind.__name__: kind for kind in (schema.Feature, schema.EventType, schema.ListHistory)},
}


def default_of(field: dataclasses.Field[object]) -> str:
    """A field's default as the page writes it."""
    if field.default is not dataclasses.MISSING:
        return {"None": "`null`"}.get(str(field.default), f"`{field.default}`")
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    return "required"


@pytest.mark.parametrize("title", KINDS)
def test_schema_page_lists_every_key_with_its_default(title: str) -> None:
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", SCHEMA_PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    written = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section[1], re.MULTILINE))
    assert written == {f.name: default_of(f) for f in dataclasses.fields(KINDS[title])}


def test_schema_page_example_is_a_schema() -> None:
    example = re.search(r"```yaml\n(.*?)```", SCHEMA_PAGE, re.DOTALL)
    assert example is not None
    assert parse(schema.Schema, yaml.safe_load(example[1]), "docs/schema.md").tasks == [
        "click",
        "purchase",
    ]


def test_cli_page_shows_the_help_of_today() -> None:
    blocks = re.findall(r"<!-- output: kunlun (.*?)--help -->\n(.*?)<!-- end -->", CLI_PAGE, re.S)
    shown = {words.strip(): text for words, text in blocks}
    groups = {"data": DATA_VERBS, "bench": BENCH_VERBS}
    verbs = [v.name for v in VERBS if v.name not in groups]
    verbs += [f"{group} {v.name}" for group, found in groups.items() for v in found]
    assert set(shown) == {"", *verbs}
    for words, text in shown.items():
        command = " ".join(["kunlun", *words.split(), "--help"])
        assert text == f"```console\n$ {command}\n{_help(words)}\n```\n"


def _help(words: str) -> str:
    context = click.Context(root, info_name="kunlun")
    for word in words.split():
        assert isinstance(context.command, click.Group)
        command = context.command.get_command(context, word)
        assert command is not None
        context = click.Context(command, context, info_name=word, terminal_width=78)
    return "\n".join(line.rstrip() for line in context.get_help().strip().splitlines())


def _refresh_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_pasted_block_is_empty(page: Path) -> None:
    """Only that something was pasted, not that it is of today."""
    blocks = _refresh_module().BLOCK.findall(page.read_text())
    empty = [what for _, what, body in blocks if not body.strip()]
    assert not empty, f"{page.name}: nothing was pasted yet for {empty}; run `make docs`"


def test_refresh_replaces_blocks_and_keeps_a_failed_table(tmp_path: Path) -> None:
    text = (
        "a\n<!-- output: echo 7 > n; echo new -->\nold\n<!-- end -->\nb\n"
        "<!-- output: cat n -->\n<!-- end -->\n"
        "<!-- markdown: exit 3 -->\nkept\n<!-- end -->\n"
        "<!-- markdown: ls pyproject.toml -->\n<!-- end -->\n"
    )
    assert _refresh_module().refresh(text, tmp_path) == (
        "a\n<!-- output: echo 7 > n; echo new -->\n"
        "```console\n$ echo 7 > n; echo new\nnew\n```\n<!-- end -->\nb\n"
        "<!-- output: cat n -->\n```console\n$ cat n\n7\n```\n<!-- end -->\n"
        "<!-- markdown: exit 3 -->\nkept\n<!-- end -->\n"
        "<!-- markdown: ls pyproject.toml -->\npyproject.toml\n<!-- end -->\n"
    )


def test_refresh_stops_at_a_failing_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="`ls missing` failed with exit code 2"):
        _refresh_module().refresh("<!-- output: ls missing -->\n<!-- end -->\n", tmp_path)
