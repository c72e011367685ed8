"""Which room may import which: the table of the house, walked without importing anything."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "kunlun"
EVERYWHERE = {"kunlun", "kunlun.errors", "kunlun.config"}
ANY = {"kunlun"}


class Room(NamedTuple):
    """ours: rooms and modules of the package it may import; theirs: other distributions."""

    ours: set[str]
    theirs: set[str]


# Only torch and the standard library up to the models, so that they run on a bare GPU box.
ROOMS = {
    "ops": Room(set(), {"torch"}),
    "layers": Room({"kunlun.ops"}, {"torch"}),
    "features": Room({"kunlun.ops", "kunlun.layers"}, {"torch"}),
    "models": Room({"kunlun.ops", "kunlun.layers", "kunlun.features"}, {"torch"}),
    "metrics": Room(set(), {"torch", "torchmetrics"}),
    "data": Room(
        {"kunlun.features.schema", "kunlun.features.batch"}, {"torch", "numpy", "pyarrow", "yaml"}
    ),
    "report": Room(set(), set()),
    "training": Room(  # of ops: what an optimizer does to the rows of a table
        {f"kunlun.{room}" for room in ("ops", "features", "models", "data", "metrics", "report")},
        {"torch", "numpy", "pyarrow", "safetensors", "tensorboard", "rich"},
    ),
    "bench": Room(
        {
            f"kunlun.{room}"
            for room in ("ops", "layers", "features", "models", "data", "training", "report")
        },
        {"torch"},
    ),
    "scaling": Room(
        {f"kunlun.{room}" for room in ("models", "data", "metrics", "training", "report")},
        {"torch", "numpy"},
    ),
    "cli": Room(ANY, {"click", "rich", "torch"}),
}
# Read or written at one edge, inside a function, so that importing the room asks for nothing.
INSIDE_FUNCTIONS = {
    "ops": {"triton"},
    "models": {"safetensors"},
    "report": {"matplotlib"},
    "bench": {"flash_attn"},  # measured where somebody has it
}
# Triton's device functions and what launches them, imported when an operator runs there.
KERNELS = ("ops/*/kernels.py", "ops/triton/[!_]*.py")
# At the top of no file that `kunlun VERB --help` imports.
SLOW = {"torch"}


class Import(NamedTuple):
    """One imported module; `top` if it is imported with the file."""

    module: str
    line: int
    top: bool


def imports(text: str, package: str) -> list[Import]:
    """Absolute names of everything a module imports, at any depth."""
    tree = ast.parse(text)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from kunlun import ops` names a room, `from kunlun.ops import gdpa` a thing of one
            names = [f"{base}.{a.name}" for a in node.names] if base == "kunlun" else [base]
            names = ["kunlun" if n == "kunlun.__version__" else n for n in names]
        elif isinstance(node, ast.Call) and _called(node) == "import_module":
            literal = node.args[0] if node.args else None
            if not isinstance(literal, ast.Constant):
                continue
            names = [str(literal.value)]
        else:
            continue
        found += [Import(name, node.lineno, id(node) not in inner) for name in names]
    return found


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def problems(source: Path, room: str) -> list[str]:
    """One line for every import that the table forbids."""
    rule, found = ROOMS[room], []
    kernels = {file for pattern in KERNELS for file in source.glob(pattern)}
    for file in sorted((source / room).rglob("*.py")):
        package = ".".join(["kunlun", *file.relative_to(source).parent.parts])
        for entry in imports(file.read_text(), package):
            if file in kernels and entry.module.split(".")[0] == "triton":
                continue
            if reason := _forbidden(entry, room, rule):
                found.append(f"{file.relative_to(source)}:{entry.line}: {reason}")
    return found


def _forbidden(entry: Import, room: str, rule: Room) -> str | None:
    top_level = entry.module.split(".")[0]
    if top_level == "kunlun":
        allowed = EVERYWHERE | {f"kunlun.{room}"} | rule.ours
        if entry.module in EVERYWHERE or "kunlun" in rule.ours:
            return None
        if any(entry.module == a or entry.module.startswith(f"{a}.") for a in allowed - ANY):
            return None
        return f"{room} may not import {entry.module}"
    if top_level in sys.stdlib_module_names:
        return None
    if room == "cli" and entry.top and top_level in SLOW:
        return f"cli may import {entry.module} inside functions only"
    inside = INSIDE_FUNCTIONS.get(room, set())
    if top_level in rule.theirs or (not entry.top and top_level in inside):
        return None
    return f"{room} may not import {entry.module}"


def rooms_of(source: Path) -> list[str]:
    """Directories of the package that hold Python."""
    return sorted(p.name for p in source.iterdir() if p.is_dir() and any(p.rglob("*.py")))


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_the_table_allows(room: str) -> None:
    assert problems(SOURCE, room) == []


def test_importing_the_operators_imports_no_kernels() -> None:
    code = (
        "import sys, kunlun.ops; print(*sorted(m for m in sys.modules if m[:10] == 'kunlun.ops'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    kernels = [
        ".".join(["kunlun", *file.relative_to(SOURCE).with_suffix("").parts])
        for pattern in KERNELS
        for file in SOURCE.glob(pattern)
    ]
    assert "kunlun.ops.gdpa.kernels" in kernels
    assert "kunlun.ops.triton" in loaded
    assert not set(kernels) & set(loaded)


def test_importing_the_operators_does_not_import_the_compiler() -> None:
    code = "import sys, kunlun.ops; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_room_is_in_the_table() -> None:
    assert set(rooms_of(SOURCE)) <= set(ROOMS)
    files = {file.stem for file in SOURCE.glob("*.py")}
    assert files == {"__init__", "__main__", "config", "errors", "testing"}


def test_testing_imports_only_what_its_users_have() -> None:
    for entry in imports((SOURCE / "testing.py").read_text(), "kunlun"):
        if entry.module.startswith("kunlun."):
            assert entry.module.split(".")[1] in ("errors", "config", "ops", "features")
        elif entry.module.split(".")[0] not in sys.stdlib_module_names:
            assert entry.module == "torch" or entry.module.startswith("hypothesis")


def test_errors_and_config_import_nothing_heavy() -> None:
    for name in ("errors", "config"):
        for entry in imports((SOURCE / f"{name}.py").read_text(), "kunlun"):
            known = entry.module == "kunlun.errors" or not entry.module.startswith("kunlun")
            assert known, f"{name}.py imports {entry.module}"
            stdlib = entry.module.split(".")[0] in {*sys.stdlib_module_names, "kunlun"}
            assert stdlib or not entry.top, f"{name}.py:{entry.line} imports {entry.module}"


@pytest.mark.parametrize(
    ("room", "line", "complaint"),
    [
        ("ops", "import numpy", "ops may not import numpy"),
        ("ops", "import triton.language as tl", "ops may not import triton.language"),
        ("ops", "from kunlun.layers.mlp import MLP", "ops may not import kunlun.layers.mlp"),
        ("layers", "from kunlun import models", "layers may not import kunlun.models"),
        ("layers", "from ..models import MODELS", "layers may not import kunlun.models"),
        ("models", "import safetensors", "models may not import safetensors"),
        ("models", "def f():\n    import pyarrow", "models may not import pyarrow"),
        ("metrics", "import sklearn", "metrics may not import sklearn"),
        ("data", "import kunlun.features.embedding", "kunlun.features.embedding"),
        (
            "data",
            "import importlib\nimportlib.import_module('kunlun.training.trainer')",
            "kunlun.training.trainer",
        ),
        ("report", "from kunlun.training import trainer", "report may not import kunlun.training"),
        ("training", "from kunlun.cli import main", "training may not import kunlun.cli"),
        ("scaling", "from kunlun.layers.mlp import MLP", "scaling may not import kunlun.layers"),
        ("cli", "import torch", "inside functions only"),
    ],
)
def test_wrong_import_is_found(tmp_path: Path, room: str, line: str, complaint: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "wrong.py").write_text(f'"""A module."""\n{line}\n')
    (found,) = problems(tmp_path, room)
    assert complaint in found
    assert found.startswith(f"{room}/wrong.py:")


def test_triton_is_imported_at_the_top_of_kernels(tmp_path: Path) -> None:
    for name in ("triton/tiles.py", "gdpa/kernels.py", "gdpa/op.py", "triton/__init__.py"):
        (tmp_path / "ops" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ops" / name).write_text("import triton\n")
    found = [line.split(":")[0] for line in problems(tmp_path, "ops")]
    assert found == ["ops/gdpa/op.py", "ops/triton/__init__.py"]


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("ops", "import torch, math\nfrom kunlun.errors import ShapeError"),
        ("ops", "def f():\n    import triton"),
        ("models", "from kunlun.ops.jagged import Jagged\nfrom kunlun import __version__"),
        ("models", "def f():\n    from safetensors.torch import save_file"),
        ("data", "from kunlun.features.batch import Batch\nfrom kunlun.config import parse"),
        ("cli", "def f():\n    import torch\n    from kunlun.training import trainer"),
    ],
)
def test_right_import_passes(tmp_path: Path, room: str, line: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "right.py").write_text(f"{line}\n")
    assert problems(tmp_path, room) == []
