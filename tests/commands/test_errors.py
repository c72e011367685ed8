"""Bad input: exit code 2, one line that names the thing, nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kunlun.cli import environment, run
from kunlun.errors import NonFiniteError

pytestmark = pytest.mark.xdist_group("commands")

CASES = {  # arguments, with HOUSE for the folder of the README's commands -> what the line says
    "unknown preset": ("train bse data=x", "did you mean 'base'?"),
    "missing file": ("train none.yaml data=x", "none.yaml: no such file"),
    "mistyped key": ("train small data=x train.epoch=2", "did you mean 'epochs'?"),
    "mistyped model key": ("train small data=x model.layer=2", "did you mean 'layers'?"),
    "mistyped event type": ("train small data=HOUSE/datasets/mine model.events.clik.dim=8", "clik"),
    "wrong type": ("train small data=x train.batch_size=many", "batch_size"),
    "wrong value": ("train small data=x train.lr=-1", "train.lr is -1"),
    "no override": ("train small data=x nonsense", "'nonsense' is not an override"),
    "missing data": ("train small data=nowhere", "nowhere: no such dataset directory"),
    "missing data, dry": ("train small data=nowhere --dry-run", "nowhere: no such dataset"),
    "unknown stream": ("train small data=synth:tny", "synth:tny"),
    "missing run": ("evaluate runs/none", "runs/none: no such run directory"),
    "no run": ("evaluate HOUSE/logs", "not a run directory"),
    "run against none": (
        "evaluate HOUSE/runs/small data=HOUSE/datasets/mine --against runs/none",
        "runs/none",
    ),
    "predict without data": ("predict HOUSE/runs/small data=nowhere --out x.parquet", "nowhere"),
    "missing schema": ("data prepare none.yaml --out made", "none.yaml: no such file"),
    "out exists": ("data prepare HOUSE/logs/schema.yaml --out HOUSE/datasets/mine", "exists"),
    "wrong root": (
        "data prepare HOUSE/logs/schema.yaml --out made --root .",
        "impressions.parquet",
    ),
    "like none": ("data prepare HOUSE/logs/schema.yaml --out made --like none", "none"),
    "validate none": ("data validate none.yaml", "none.yaml: no such file"),
    "inspect none": ("data inspect none", "none"),
    "inspect no dataset": ("data inspect HOUSE/logs", "HOUSE/logs"),
    "stream preset": ("data synth tny --raw made", "no preset 'tny' of the stream; known: tiny"),
    "stream key": ("data synth tiny --raw made user=3", "did you mean 'users'?"),
    "stream value": ("data synth tiny --out made items=100", "multiple of 128"),
    "stream exists": ("data synth tiny --raw HOUSE/logs", "HOUSE/logs"),
}


@pytest.mark.parametrize("case", CASES)
def test_user_error(case: str, kunlun, house: Path, tmp_path: Path) -> None:
    line, message = (text.replace("HOUSE", str(house)) for text in CASES[case])
    code, out, err = kunlun(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def logs(house: Path, tmp_path: Path) -> Path:
    """A copy of the raw logs to spoil."""
    return Path(shutil.copytree(house / "logs", tmp_path / "logs"))


def _spoiled_schema(logs: Path) -> None:
    text = (logs / "schema.yaml").read_text()
    assert "  device: {" in text
    (logs / "schema.yaml").write_text(text.replace("  device: {", "  devise: {", 1))


def _spoiled_label(logs: Path) -> None:
    table = pq.read_table(logs / "impressions.parquet")
    values = table["click"].to_pylist()
    values[17] = 2
    at = table.column_names.index("click")
    pq.write_table(table.set_column(at, "click", pa.array(values)), logs / "impressions.parquet")


def _spoiled_yaml(logs: Path) -> None:
    (logs / "schema.yaml").write_text("tables: {impressions: [\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_spoiled_schema, ["column 'devise'", "impressions.parquet"]),
        (_spoiled_label, ["impressions.parquet", "column 'click'", "row 17", "found 2"]),
        (_spoiled_yaml, ["schema.yaml, line 2: not valid YAML"]),
    ],
    ids=["unknown column", "label of 2", "torn schema"],
)
@pytest.mark.parametrize("verb", ["validate", "prepare"])
def test_spoiled_logs(verb: str, spoil, said: list[str], kunlun, logs: Path) -> None:
    spoil(logs)
    before = sorted(logs.parent.rglob("*"))
    out = ["--out", "made"] if verb == "prepare" else []
    code, printed, err = kunlun("data", verb, "logs/schema.yaml", *out)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert all(part in err for part in said), err
    assert sorted(logs.parent.rglob("*")) == before


def test_unwritable_place_is_the_users(kunlun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/locked")

    monkeypatch.setattr(environment, "describe", refuse)
    assert kunlun("doctor")[::2] == (2, "error: /locked: Permission denied\n")


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (NonFiniteError(step=3, module="head", batch_file=None), 1, "error: step 3: head is not"),
        (ValueError("odd"), 1, "error: ValueError: odd; a fault of kunlun, not of your input."),
    ],
    ids=["ctrl-c", "numerics", "fault of ours"],
)
def test_other_ends(
    error: BaseException, code: int, last: str, kunlun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(environment, "describe", fail)
    result = kunlun("doctor")
    assert result.code == code
    assert result.err.splitlines()[-1].startswith(last)
    assert ("Traceback" in result.err) == isinstance(error, ValueError)


def test_run_needs_no_arguments_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-verb"]) == 2
    assert capsys.readouterr().err.startswith("error: no verb 'no-such-verb'")
