"""A schema that adds to another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kunlun.data.prepare import prepare
from kunlun.data.schema_file import load_schema
from kunlun.data.validate import validate
from kunlun.errors import ConfigError, SchemaError
from tests.data import logs


def put(path: Path, body: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


def test_maps_are_merged_and_the_rest_is_replaced(tmp_path: Path) -> None:
    base = logs.schema()
    path = logs.write(tmp_path / "raw", logs.random_logs(1), base)
    more = put(
        tmp_path / "raw" / "more.yaml",
        {
            "extends": "schema.yaml",
            "split": {"end": None},
            "features": {
                "brand": {"dim": 4},
                "new": {"role": "context", "kind": "categorical", "column": "page"},
            },
            "events": {"acts": {"types": ["click"]}},
        },
    )
    expected = logs.schema()
    del expected["split"]["end"]
    expected["features"]["brand"]["dim"] = 4
    expected["features"]["new"] = {"role": "context", "kind": "categorical", "column": "page"}
    expected["events"]["acts"]["types"] = ["click"]
    whole = load_schema(put(tmp_path / "raw" / "whole.yaml", expected))
    assert load_schema(more) == whole
    assert list(load_schema(more).features) == [*load_schema(path).features, "new"]
    prepare(more, tmp_path / "data")
    assert validate(more) == validate(tmp_path / "raw" / "whole.yaml")
    assert "extends" not in (tmp_path / "data" / "schema.yaml").read_text()


def test_paths_start_from_the_file_that_names_them(tmp_path: Path) -> None:
    """The base from the schema that extends it; tables from the schema that is prepared."""
    logs.write(tmp_path / "raw", logs.random_logs(1))
    (tmp_path / "raw" / "schema.yaml").rename(put(tmp_path / "base" / "b.yaml", {}))
    middle = put(tmp_path / "base" / "m.yaml", {"extends": "b.yaml"})
    top = put(tmp_path / "raw" / "top.yaml", {"extends": "../base/m.yaml", "group": None})
    assert load_schema(top).group is None
    assert load_schema(middle).group == "session"
    validate(top)


def test_extends_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_schema(put(tmp_path / "a.yaml", {"extends": "none.yaml"}))
    with pytest.raises(SchemaError, match=r"a\.yaml: extends is \['b'\], expected the path of one"):
        load_schema(put(tmp_path / "a.yaml", {"extends": ["b"]}))
    put(tmp_path / "a.yaml", {"extends": "b.yaml"})
    with pytest.raises(SchemaError, match=r"a\.yaml: extends b\.yaml, which extends it in turn"):
        load_schema(put(tmp_path / "b.yaml", {"extends": "a.yaml"}))
