"""Run the commands named in Markdown files and paste what they print.

    python docs/refresh.py README.md docs/cli.md [--only TEXT]

A block looks like this; everything between its two marks is replaced:

    <!-- output: kunlun doctor -->
    <!-- end -->

A block of kind `markdown` pastes what its command prints as it is, run in the repository's root;
if it fails, the old text stays and a warning is printed. Commands of kind `output` run in one
temporary directory, in the order of the file, so that a later one sees what an earlier one wrote;
`output in repository` runs in the root.
Numbers in these files are never typed by hand.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"<!-- (output|output in repository|markdown): (.+?) -->\n(.*?)<!-- end -->\n", re.DOTALL
)


def refresh(text: str, cwd: Path, only: str = "") -> str:
    """The text with every block whose head contains `only` filled again."""

    def fill(match: re.Match[str]) -> str:
        kind, what, old = match.groups()
        if only not in what:
            return match[0]
        if kind == "markdown":
            body = markdown(what, old)
        else:
            body = console(what, cwd if kind == "output" else ROOT)
        return f"<!-- {kind}: {what} -->\n{body}<!-- end -->\n"

    return BLOCK.sub(fill, text)


def console(command: str, cwd: Path) -> str:
    """A fenced block with a command and what it prints on both streams. Exits if it fails."""
    done = _bash(f"exec 2>&1; {command}", cwd)
    if done.returncode:
        sys.exit(f"`{command}` failed with exit code {done.returncode}:\n{done.stdout}")
    return f"```console\n$ {command}\n{_trimmed(done.stdout)}\n```\n"


def markdown(command: str, old: str) -> str:
    """What a command prints, or the old text if it fails."""
    done = _bash(command, ROOT)
    if done.returncode:
        print(f"warning: `{command}` failed, its block stays as it was", file=sys.stderr)
        return old
    return f"{_trimmed(done.stdout)}\n"


def _bash(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True
    )


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Paste the output of commands into Markdown.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="blocks whose head contains this text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for file in arguments.files:
            file.write_text(refresh(file.read_text(), Path(folder), arguments.only))


if __name__ == "__main__":
    main()
