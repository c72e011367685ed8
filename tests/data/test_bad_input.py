"""Every way that logs can break the schema: one line with file, column, row and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kunlun.data.prepare import prepare
from kunlun.data.validate import validate
from kunlun.errors import ConfigError, DataError, SchemaError, UserError
from tests.data import logs

Change = Callable[[logs.Logs, dict[str, Any]], None]


def put(table: str, column: str, row: int, value: Any) -> Change:
    """Overwrite one raw value."""

    def change(raw: logs.Logs, body: dict[str, Any]) -> None:
        raw[table][column][row] = value

    return change


def column(table: str, name: str, function: Callable[[Any], Any]) -> Change:
    """Map a whole raw column."""

    def change(raw: logs.Logs, body: dict[str, Any]) -> None:
        raw[table][name] = [function(value) for value in raw[table][name]]

    return change


def key(path: str, value: Any) -> Change:
    """Set a key of the schema; None deletes it."""

    def change(raw: logs.Logs, body: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = body
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if value is None:
            del node[last]
        else:
            node[last] = value

    return change


def empty(table: str) -> Change:
    def change(raw: logs.Logs, body: dict[str, Any]) -> None:
        raw[table] = {name: values[:0] for name, values in raw[table].items()}

    return change


AGE = {"role": "user", "kind": "numeric"}
LISTS = {"column": "seen", "time": "seen_time"}
CASES: dict[str, tuple[Change, type[UserError], str]] = {
    "missing file": (
        key("tables.events.files", "event.parquet"),
        DataError, r"raw/event\.parquet: no such file \(tables\.events\.files\).*--root",
    ),
    "empty glob": (key("tables.events.files", "x*.parquet"), DataError, r"x\*.*no such file"),
    "no files": (key("tables.events.files", []), SchemaError, "the list is empty"),
    "format": (
        key("tables.events.files", "schema.yaml"),
        DataError, r"schema\.yaml: unknown format; expected \.parquet",
    ),
    "unknown column": (
        key("features.page.column", "pag"),
        SchemaError,
        r"features\.page\.column: column 'pag' is not in .*impressions\.parquet; "
        r"did you mean 'page'\?",
    ),
    "unknown user column": (
        key("features.country.column", "land"),
        SchemaError, r"features\.country\.column: no table of tables\.users has 'land'; it has age",
    ),
    "unknown label column": (
        key("labels.click.column", "clik"), SchemaError, r"labels\.click\.column.*mean 'click'\?",
    ),
    "unknown counter key": (
        key("features.user_ctr.keys", ["user"]), SchemaError, r"features\.user_ctr\.keys: column",
    ),
    "counter of an unknown event type": (
        key("features.brand_acts.of", "views"),
        SchemaError, r"features\.brand_acts\.of: 'views' is not an event type",
    ),
    "counter of events by context": (
        key("features.brand_acts.keys", ["page"]),
        SchemaError, "brand_acts.keys: 'page' is not a feature of role user or item",
    ),
    "counter of many values": (
        key("features.user_ctr.keys", ["tags"]),
        SchemaError, r"user_ctr\.keys: 'tags' is multi; a key must be one value",
    ),
    "missing user column": (
        key("tables.impressions.user", None),
        SchemaError, r"tables\.impressions\.user is missing; name the column of .*impressions",
    ),
    "missing type column": (
        key("tables.events.type", None), SchemaError, r"tables\.events\.type is missing",
    ),
    "text for number": (
        column("impressions", "position", lambda v: "far" if v > 9 else str(v)),
        DataError,
        r"impressions\.parquet, column 'position', row \d+: found text 'far', expected a number",
    ),
    "list for number": (
        key("features.age.column", "seen"), DataError, "lists where numbers were expected",
    ),
    "list for category": (
        key("features.country.column", "seen"),
        DataError, r"users\.parquet, column 'seen': lists where single values.*kind 'multi'",
    ),
    "number for multi": (
        key("features.tags", {"role": "user", "kind": "multi", "column": "age"}),
        DataError, r"column 'age': values of type double; expected a list column",
    ),
    "label 2": (
        put("impressions", "click", 17, 2),
        DataError,
        r"impressions\.parquet, column 'click', row 17: found 2, expected 0, 1 or null in label "
        "'click'; clean the column",
    ),
    "label infinity": (
        column("impressions", "buy", lambda v: float("inf")), DataError, "row 0: found inf, exp",
    ),
    "probability": (
        put("impressions", "p", 3, 1.5), DataError, "'p', row 3: found 1.5, expected a probability",
    ),
    "NaN number": (
        put("impressions", "position", 8, float("nan")),
        DataError, "'position', row 8: found null, expected a value for 'position'.*missing: token",
    ),
    "infinite number": (
        put("impressions", "position", 8, float("-inf")), DataError, "row 8: found infinity",
    ),
    "null attribute": (
        key("features.age", AGE),
        DataError, r"users\.parquet, column 'age', row 2: found null, expected a value for 'age'",
    ),
    "no attributes": (
        key("features.quality", {"role": "item", "kind": "categorical", "column": "brand",
                                 "missing": "error"}),
        DataError, r"items\.parquet, column 'brand'.*: found null, expected a value for 'quality'",
    ),
    "null age of the user": (
        key("features.tenure.missing", "error"),
        DataError, r"users\.parquet, column 'joined', row 2: found null, expected a value",
    ),
    "null time": (
        put("impressions", "time", 5, None), DataError, "'time', row 5: found null, expected a time"
    ),
    "negative time": (
        put("events", "time", 5, -3),
        DataError, r"events\.parquet, column 'time', row 5: found a time in the past \(-3 ms\)",
    ),
    "seconds as ms": (
        column("impressions", "time", lambda v: v // 1000),
        DataError, r"row 0: found a time in the year 1970.*is time_unit 'ms' right \(s, ms, us\)\?",
    ),
    "ms as seconds": (
        key("tables.impressions.time_unit", "s"), DataError, "far year.*is time_unit 's' right",
    ),
    "text for time": (
        column("events", "time", lambda v: "yesterday"),
        DataError, "row 0: found 'yesterday', expected an ISO time such as",
    ),
    "text for date": (
        put("users", "joined", 4, "long ago"), DataError, "'joined', row 4: found 'long ago'",
    ),
    "list without time": (
        put("users", "seen_time", 1, None),
        DataError, "'seen_time', row 1: found null, expected a time",
    ),
    "list times too few": (
        column("users", "seen_time", lambda v: [v] if v else None),
        DataError, "'seen_time', row 2: 1 times for the 3 items of 'seen'; expected one each",
    ),
    "list times go back": (
        lambda raw, body: raw["users"].update(
            seen_time=[[logs.moment(9 - i) for i in range(len(s or []))]
                       for s in raw["users"]["seen"]]
        ),
        DataError, r"'seen_time', row 2: times go back from .*; expected oldest first: sort the",
    ),
    "list of the id": (
        key("events.view.lists.column", "user_id"), SchemaError, "lists.column: 'user_id' is the",
    ),
    "lists without own values": (
        key("events.view.features.dwell", {"role": "event", "kind": "numeric"}),
        SchemaError, r"events\.view\.features\.dwell: items of list histories have no value; set",
    ),
    "null user": (
        put("events", "user_id", 4, None),
        DataError, r"events\.parquet, column 'user_id', row 4: found null, expected an id",
    ),
    "duplicate user": (
        put("users", "user_id", 5, 8),
        DataError, r"users\.parquet, column 'user_id', row 5: '8' occurs twice; a key must be uniq",
    ),
    "event type": (
        key("events.acts.types", ["click", "othr"]),
        SchemaError, r"events\.acts\.types: 'othr' never occurs in .*it has click, other, view",
    ),
    "no events table": (
        key("tables.events", None), SchemaError, r"events\.view.*list histories have item ids only",
    ),
    "empty table": (empty("events"), DataError, r"events\.parquet: no rows; tables\.events needs"),
    "empty split": (
        key("split.test", logs.iso(logs.moment(24))),
        DataError, r"no impressions in valid; the log spans 2023-11-14T.*: move split\.valid",
    ),
    "split order": (
        key("split.valid", logs.iso(logs.moment(35))), SchemaError, "split: start .*in this order",
    ),
    "split zone": (
        key("split.valid", "2023-11-14"), SchemaError, "split.valid: '2023-11-14' has no zone",
    ),
    "split text": (key("split.valid", "May"), SchemaError, "split.valid: 'May' is not an ISO time"),
    "weight": (
        lambda raw, body: (raw["impressions"].update(w=[-1.0] * 120), body.update(weight="w")),
        DataError, "'w', row 0: found -1, expected a weight of at least 0",
    ),
    "shared table": (
        key("features.page.table", "country"), SchemaError, "never reached",
    ),
    "misspelt key": (
        key("features.page.bucket", 3), ConfigError, "bucket is not a field.*mean 'buckets'",
    ),
    "part": (key("features.page.part", "age"), SchemaError, "part: 'age' does not fit kind 'categ"),
}  # fmt: skip
CASES["shared table"] = (
    lambda raw, body: (
        key("features.country.table", "places")(raw, body),
        key("features.page", {"role": "context", "kind": "categorical", "table": "places",
                              "min_count": 3})(raw, body),
    ),
    SchemaError, "page: min_count is 3, but country shares table 'places' with 1; sharers must",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(tmp_path: Path, name: str) -> None:
    change, kind, message = CASES[name]
    raw, body = logs.random_logs(1), logs.schema()
    change(raw, body)
    path = logs.write(tmp_path / "raw", raw, body)
    with pytest.raises(kind, match=message) as caught:
        prepare(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
    with pytest.raises(kind, match=message):
        validate(path)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return logs.write(tmp_path / "raw", logs.random_logs(1))


@pytest.mark.parametrize("name", ["impressions", "events", "users"])
def test_truncated_parquet(tmp_path: Path, good: Path, name: str) -> None:
    file = good.parent / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name}\.parquet: cannot be read .*truncated"):
        prepare(good, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_in_csv_names_its_row(tmp_path: Path) -> None:
    raw, body = logs.random_logs(1), logs.schema()
    body["tables"]["impressions"]["files"] = "impressions.csv"
    path = logs.write(tmp_path / "raw", raw, body)
    logs.write(tmp_path / "raw", {"impressions": raw["impressions"]}, body, kind="csv")
    file = tmp_path / "raw" / "impressions.csv"
    lines = file.read_text().splitlines()
    lines[101] = lines[101].replace(lines[101].split(",")[4], "far")
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="column 'position', row 100: found text 'far'"):
        prepare(path, tmp_path / "out")


def test_row_in_the_second_of_two_files(tmp_path: Path) -> None:
    raw, body = logs.random_logs(1), logs.schema()
    raw["impressions"]["click"][119] = 7
    body["tables"]["impressions"]["files"] = ["a/impressions.parquet", "b/impressions.parquet"]
    path = logs.write(tmp_path / "raw", raw, body)
    for name, part in (("a", slice(0, 100)), ("b", slice(100, 120))):
        rows = {k: v[part] for k, v in raw["impressions"].items()}
        logs.write(tmp_path / "raw" / name, {"impressions": rows})
    with pytest.raises(DataError, match=r"b/impressions\.parquet, column 'click', row 19: found 7"):
        validate(path)
