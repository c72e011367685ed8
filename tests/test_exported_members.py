"""The public surface: what docs/api.md lists, nothing else, and loaded late."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kunlun

API = (Path(__file__).parent.parent / "docs" / "api.md").read_text()


def test_names_are_those_of_the_reference() -> None:
    assert re.findall(r"^\| `kunlun\.(\w+)`", API, re.MULTILINE) != []
    assert set(re.findall(r"^\| `kunlun\.(\w+)`", API, re.MULTILINE)) == set(kunlun.__all__)


@pytest.mark.parametrize("name", kunlun.__all__)
def test_name_resolves(name: str) -> None:
    assert getattr(kunlun, name) is not None
    assert name in dir(kunlun)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = kunlun.Trainer


def test_import_waits_for_nothing() -> None:
    code = (
        "import json, sys, kunlun; "
        "heavy = [m for m in ('torch', 'numpy', 'pydantic', 'yaml') if m in sys.modules]; "
        "from kunlun import Schema; print(json.dumps([heavy, Schema.__name__]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], "Schema"]
