"""Values typed on a command line or in YAML mean what the field they are for says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kunlun.config import Config, override, parse, read_yaml, to_yaml
from kunlun.errors import ConfigError
from kunlun.training.config import load_run_config


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    size: int = 1
    rate: float | None = 0.5
    on: bool = False


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    name: str
    names: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    free: dict[str, Any] = field(default_factory=dict)


def read(*overrides: str) -> Outer:
    values = override({"name": "n"}, list(overrides))
    found = parse(Outer, values, "test")
    import yaml

    assert parse(Outer, yaml.safe_load(to_yaml(found.to_dict())), "again") == found
    return found


@pytest.mark.parametrize(
    "text",
    [
        "20240501",
        "007",
        "1_000",
        "2024.10",
        "1.0",
        "2024-05-01",
        "1:30",
        "0x10",
        "-5",
        "1e3",
        "a b",
    ],
)
def test_text_stays_as_it_was_typed(text: str) -> None:
    assert read(f"name={text}").name == text


def test_numbers_are_numbers_where_numbers_are_meant() -> None:
    found = read("inner.size=1_000", "inner.rate=0.10", "inner.on=true", "names=[1, a]")
    assert (found.inner, found.names) == (Inner(size=1000, rate=0.1, on=True), ["1", "a"])
    assert read("inner.rate=1e-3").inner.rate == 1e-3
    assert read("inner.rate=null").inner.rate is None
    assert read("free.a=3", "free.b=0.5", "free.c={d: 1}").free == {"a": 3, "b": 0.5, "c": {"d": 1}}


def test_text_is_no_number() -> None:
    with pytest.raises(ConfigError, match=r"test: inner\.size is 'many'; .*valid integer"):
        read("inner.size=many")
    with pytest.raises(ConfigError, match=r"test: inner\.size is '1:30'"):
        read("inner.size=1:30")


def test_a_run_may_be_named_by_a_date() -> None:
    config = load_run_config("small", ["data=20240501", "name=20240501", "model.layers=2"])
    assert (config.data, config.name, config.model["layers"]) == ("20240501", "20240501", 2)


def test_a_number_in_a_file_names_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: 20240501\ndata: 1\n")
    config = load_run_config(tmp_path / "a.yaml")
    assert (config.name, config.data) == ("20240501", "1")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, expected a YAML file"):
        read_yaml(tmp_path)
