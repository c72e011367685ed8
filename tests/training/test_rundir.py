"""What a run may write into, delete and go on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from kunlun.errors import ConfigError, RunError
from kunlun.training.config import RunConfig
from kunlun.training.evaluate import evaluate
from kunlun.training.trainer import Trainer, train


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below with its content and time of change."""
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("resume", [False, True], ids=["fresh", "resume"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("out", ["mine", "."])
def test_a_directory_that_is_no_run_is_refused_and_kept(
    data, config, tmp_path, monkeypatch, resume, overwrite, out
):
    folder = tmp_path / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "precious.txt").write_text("precious")
    (folder / "summary.json").write_text("{}")
    before = files(folder)
    monkeypatch.chdir(folder if out == "." else tmp_path)
    with pytest.raises(RunError, match=r"is not empty and not a run.*choose another name="):
        train(config(), out=Path(out), resume=resume, overwrite=overwrite, quiet=True)
    assert files(folder) == before


def test_a_config_of_something_else_is_not_overwritten(data, config, tmp_path):
    (tmp_path / "r" / "model").mkdir(parents=True)
    (tmp_path / "r" / "model" / "precious.txt").write_text("precious")
    (tmp_path / "r" / "config.yaml").write_text("site: mine\n")
    before = files(tmp_path)
    with pytest.raises(RunError, match=r"r is not empty and not a run of kunlun.*config\.yaml"):
        train(config(), out=tmp_path / "r", overwrite=True, quiet=True)
    assert files(tmp_path) == before


def test_a_file_in_the_place_of_a_run_is_refused(data, config, tmp_path):
    (tmp_path / "r").write_text("a file")
    with pytest.raises(RunError, match=r"r is a file, expected a directory; choose another name="):
        train(config(), out=tmp_path / "r", quiet=True)


def test_an_empty_directory_will_do(data, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(config(max_steps=1), out=Path("."), quiet=True)
    assert (run / "summary.json").is_file()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/", "a\\b", "a\0b"])
def test_a_name_is_one_directory_under_runs(name):
    with pytest.raises(ConfigError, match=r"name is '.*', expected one directory name without"):
        RunConfig(name=name, data="d")


@pytest.fixture
def cut(data, config, tmp_path, monkeypatch):
    """A run that was cut off at step 4, on data in a directory of their own; the data's folder."""
    folder = tmp_path / "data"
    (folder / "encoders").mkdir(parents=True)
    (folder / "encoders" / "item.json").write_text("{}")
    (folder / "schema.yaml").write_text("labels: {}")
    data.path, data.manifest = str(folder), {"inputs": {"x.parquet": {"sha256": "a", "bytes": 1}}}

    def crash(self, batch):
        if self.progress.step == 4:
            raise InterruptedError
        original(self, batch)

    original = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", crash)
        with pytest.raises(InterruptedError):
            train(config(), out=tmp_path / "r", quiet=True)
    return folder


def prepare_again(data, folder, what):
    if what == "inputs":
        data.manifest = {"inputs": {"x.parquet": {"sha256": "b", "bytes": 1}}}
    elif what == "schema":
        (folder / "schema.yaml").write_text("labels: {click: {}}")
    else:
        (folder / "encoders" / "item.json").write_text('{"a": 2}')


@pytest.mark.parametrize("what", ["inputs", "encoders", "schema"])
def test_a_resume_on_other_data_is_refused_and_changes_nothing(data, config, cut, tmp_path, what):
    before = files(tmp_path / "r")
    prepare_again(data, cut, what)
    with pytest.raises(RunError, match=rf"cannot resume: the data were prepared again.*{what}"):
        train(config(), out=tmp_path / "r", resume=True, quiet=True)
    assert files(tmp_path / "r") == before


def test_a_resume_that_cannot_be_restored_changes_nothing(data, config, cut, tmp_path):
    run = tmp_path / "r"
    place = sorted((run / "checkpoints").iterdir())[-1]
    state = (place / "state.json").read_text()
    (place / "state.json").write_text("?" * len(state))
    before = files(run)
    with pytest.raises(RunError, match="cannot be read"):
        train(config(), out=run, resume=True, quiet=True)
    assert files(run) == before


def test_a_torn_description_of_the_data_is_one_clear_line(data, config, cut, tmp_path):
    (tmp_path / "r" / "env.json").write_text("{")
    with pytest.raises(RunError, match=r"env\.json: not valid JSON; delete it to do without"):
        train(config(), out=tmp_path / "r", resume=True, quiet=True)
    with pytest.raises(RunError, match=r"env\.json: not valid JSON; delete it to do without"):
        evaluate(tmp_path / "r")


def test_a_resume_on_the_same_data_elsewhere_goes_on(data, config, cut, tmp_path):
    data.path = str(cut.rename(tmp_path / "moved"))
    run = train(config(), out=tmp_path / "r", resume=True, quiet=True)
    assert (run / "summary.json").is_file()
