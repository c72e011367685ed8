"""Help answers at once, and a mistyped verb gets the nearest one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from kunlun import __version__
from kunlun.cli import VERBS, root
from kunlun.cli.bench import VERBS as BENCH_VERBS
from kunlun.cli.data import VERBS as DATA_VERBS

GROUPS = {"data": DATA_VERBS, "bench": BENCH_VERBS}
LINES = [[v.name] for v in VERBS] + [[g, v.name] for g, verbs in GROUPS.items() for v in verbs]


def test_no_help_waits_for_torch() -> None:
    code = f"""
import json, sys
from kunlun.cli import run
for words in {[[], *LINES]}:
    assert run([*words, "--help"]) == 0, words
    heavy = [m for m in ("torch", "numpy", "pyarrow", "pydantic") if m in sys.modules]
    assert not heavy, (words, heavy)
print(json.dumps(sorted(m for m in sys.modules if m.startswith("kunlun.cli"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kunlun.cli.train" in json.loads(done.stdout.splitlines()[-1])


def test_main_help_imports_no_verb() -> None:
    code = (
        "import sys; from kunlun.cli import run; run(['--help']); "
        "print(*[m for m in sys.modules if m.startswith('kunlun.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert sorted(loaded) == ["kunlun.cli", "kunlun.cli.group", "kunlun.errors"]


def test_main_help_shows_every_verb_in_its_section(kunlun) -> None:
    result = kunlun("--help")
    assert result.code == 0
    assert result == kunlun()
    section = ""
    for line in result.out.splitlines()[2 : 2 + len(VERBS)]:
        section = line[:10].strip() or section
        verb = line[10:].split()[0]
        assert (verb, section) in {(v.name, v.section) for v in VERBS}


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_verb_help_has_examples_that_parse(words: list[str], kunlun) -> None:
    result = kunlun(*words, "--help")
    assert result.code == 0
    if words[-1] in GROUPS:
        assert all(v.name in result.out for v in GROUPS[words[-1]])
        return
    command: click.Command | None = root
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    start = " ".join(["kunlun", *words])
    examples = [line.strip() for line in result.out.split("Examples:")[1].splitlines()]
    mine = [e for e in examples if e.startswith(start)]
    assert mine
    for example in mine:
        arguments = example.partition(" > ")[0].partition(" && ")[0].split()[len(words) + 1 :]
        command.make_context(words[-1], arguments)


@pytest.mark.parametrize("given", ["", "ACTIVE"], ids=["ours", "the user's"])
def test_threads_wait_without_spinning_unless_asked(given: str) -> None:
    code = (
        "import atexit, os; from kunlun.cli import main; "
        "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'])); main(['--version'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == (given or "PASSIVE")


def test_version(kunlun) -> None:
    assert kunlun("--version").out == f"kunlun {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: no verb 'trian'; did you mean 'train'?; see `kunlun --help`"),
        (
            ["xyz"],
            "known: demo, doctor, data, train, evaluate, predict, compare, bench",
        ),
        (["data", "inspct"], "did you mean 'inspect'?; see `kunlun data --help`"),
        (["train", "base", "--dryrun"], "No such option '--dryrun'"),
        (["train"], "which preset or file?"),
        (["train", "base"], "which data? Add data=DIR"),
        (["evaluate"], "Missing argument"),
        (["evaluate", "x", "model.dim=3"], "'model.dim=3' is not data=DIR"),
        (["predict", "x", "--out", "y"], "Missing argument 'data=DIR'"),
        (["data", "synth"], "give either --out DIR (a dataset) or --raw DIR (raw logs)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_error_is_one_line(arguments: list[str], message: str, kunlun) -> None:
    code, out, err = kunlun(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
