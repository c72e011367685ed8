"""Places that cannot be written or read: exit code 2, one line, nothing left behind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kunlun.cli import environment
from tests.data import logs

CASES = {
    "schema is a folder": ("data prepare raw --out made", "raw is a folder, expected a YAML file"),
    "validate a folder": ("data validate raw", "raw is a folder, expected a YAML file"),
    "here": ("data prepare raw/schema.yaml --out .", ".: is the current folder; name a new one"),
    "stream here": ("data synth tiny --out .", ".: is the current folder; name a new one"),
    "raw stream here": ("data synth tiny --raw .", ".: is the current folder; name a new one"),
    "above": ("data prepare raw/schema.yaml --out ..", "..: exists already"),
    "in a file": (
        "data prepare raw/schema.yaml --out raw/schema.yaml/x/y",
        "raw/schema.yaml/x/y: raw/schema.yaml is a file, expected a folder",
    ),
    "stream in a file": (
        "data synth tiny --raw raw/schema.yaml/x",
        "raw/schema.yaml/x: raw/schema.yaml is a file",
    ),
    "long": (f"data prepare raw/schema.yaml --out {'x' * 300}", "File name too long"),
    "predict csv": (
        "predict runs/none data=x --out p.csv",
        "p.csv: predictions are Parquet; expected a name that ends in .parquet",
    ),
    "predict in a folder": ("predict runs/none data=x --out d.parquet", "d.parquet is a directory"),
    "predict in a file": (
        "predict runs/none data=x --out raw/schema.yaml/p.parquet",
        "raw/schema.yaml is a file, not a directory",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_places(case: str, kunlun, tmp_path: Path) -> None:
    logs.write(tmp_path / "here" / "raw", logs.random_logs(1))
    (tmp_path / "here" / "d.parquet").mkdir()
    before = sorted(tmp_path.rglob("*"))
    line, message = CASES[case]
    code, out, err = kunlun(*line.split(), cwd=tmp_path / "here")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_a_place(kunlun, tmp_path: Path) -> None:
    logs.write(tmp_path / "raw", logs.random_logs(1))
    (tmp_path / "made").mkdir()
    assert kunlun("data", "prepare", "raw/schema.yaml", "--out", "made/").code == 0
    assert kunlun("data", "prepare", "raw/schema.yaml", "--out", "raw/../new").code == 0


@pytest.mark.parametrize("name", ["EISDIR", "ENOTDIR", "EEXIST", "ENAMETOOLONG", "ENOTEMPTY"])
def test_what_the_file_system_refuses_is_the_users(
    name: str, kunlun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, name), "Refused", "/place")

    monkeypatch.setattr(environment, "describe", refuse)
    assert kunlun("doctor")[::2] == (2, "error: /place: Refused\n")
