"""A run that is cut off anywhere and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kunlun.errors import RunError
from kunlun.training import checkpoint
from kunlun.training.optim import Optimizers
from kunlun.training.runlog import read_rows
from kunlun.training.trainer import Trainer, train

HERE = Path(__file__).parent
TIMES = ("seconds", "samples_per_s", "data_wait", "mfu")
CHANGES = {"checkpoint_every": 5, "ema": 0.9, "log_every": 4}


class Crash(Exception):
    pass


def crash_after(monkeypatch, step, error=Crash):
    """From now on the run dies in the step after `step`."""
    original = Trainer._step

    def dying(self, batch):
        if self.progress.step == step:
            raise error
        original(self, batch)

    monkeypatch.setattr(Trainer, "_step", dying)


def result(run):
    """Everything a run leaves that does not depend on the clock."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(run)]
    summary = json.loads((run / "summary.json").read_text())
    summary["train"] = {k: v for k, v in summary["train"].items() if k not in TIMES}
    return rows, summary, (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_crash_and_resume_is_bit_identical(data, config, tmp_path, monkeypatch, workers):
    """Crashes at step 18, inside epoch 2; the newest checkpoint is of step 15."""
    whole = train(config(**CHANGES), out=tmp_path / "whole", quiet=True)
    settings = config(**CHANGES, workers=workers)
    with monkeypatch.context() as patch:
        crash_after(patch, 18)
        with pytest.raises(Crash):
            train(settings, out=tmp_path / "cut", quiet=True)
    assert read_rows(tmp_path / "cut")[-1]["step"] > 15  # will be written again
    torch.manual_seed(123)  # whatever the new process has done before
    resumed = train(settings, out=tmp_path / "cut", resume=True, quiet=True)
    assert result(resumed) == result(whole)


def test_resume_at_the_end_of_an_epoch(data, config, tmp_path, monkeypatch):
    whole = train(config(), out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        crash_after(patch, 12)  # 12 batches an epoch, and a checkpoint there
        with pytest.raises(Crash):
            train(config(), out=tmp_path / "cut", quiet=True)
    assert result(train(config(), out=tmp_path / "cut", resume=True, quiet=True)) == result(whole)


def test_ctrl_c_writes_a_checkpoint_and_resumes_exactly(data, config, tmp_path, monkeypatch):
    whole = train(config(**CHANGES), out=tmp_path / "whole", quiet=True)
    original = Trainer._step

    def pressed(self, batch):
        original(self, batch)
        if self.progress.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config(**CHANGES), out=tmp_path / "cut", quiet=True)
    places = checkpoint.complete(tmp_path / "cut" / "checkpoints")
    assert places[-1].name == "step_00000007"
    again = train(config(**CHANGES), out=tmp_path / "cut", resume=True, quiet=True)
    assert result(again) == result(whole)


def test_ctrl_c_during_validation_repeats_the_validation(data, config, tmp_path, monkeypatch):
    whole = train(config(), out=tmp_path / "whole", quiet=True)
    original = Trainer._validate

    def pressed(self, log, stop_if_asked):
        if self.progress.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, log, stop_if_asked)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config(), out=tmp_path / "cut", quiet=True)
    assert [r["step"] for r in read_rows(tmp_path / "cut", "valid")] == [3]
    assert result(train(config(), out=tmp_path / "cut", resume=True, quiet=True)) == result(whole)


def test_patience_is_remembered(data, config, tmp_path, monkeypatch):
    changes = {"epochs": 40.0, "lr": 0.3, "patience": 3, "evaluate_every": 0.25}
    whole = train(config(**changes), out=tmp_path / "whole", quiet=True)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["train"]["stopped"] == "no better validation NE in 3 validations"
    last = summary["train"]["steps"]
    assert last < 480
    assert last - summary["train"]["best_step"] == 3 * 3  # three validations, three steps apart
    with monkeypatch.context() as patch:
        crash_after(patch, last - 2)
        with pytest.raises(Crash):
            train(config(**changes), out=tmp_path / "cut", quiet=True)
    again = train(config(**changes), out=tmp_path / "cut", resume=True, quiet=True)
    assert result(again) == result(whole)


def test_a_finished_run_is_returned_as_it_is(data, config, tmp_path, monkeypatch):
    run = train(config(), out=tmp_path / "r", quiet=True)
    crash_after(monkeypatch, 0)
    assert train(config(), out=tmp_path / "r", resume=True, quiet=True) == run


def test_a_finished_run_without_checkpoints_is_not_trained_again(data, config, tmp_path):
    run = train(config(), out=tmp_path / "r", quiet=True)
    shutil.rmtree(run / "checkpoints")
    before = (run / "summary.json").read_bytes()
    train(config(), out=run, resume=True, quiet=True)
    assert (run / "summary.json").read_bytes() == before


def test_a_second_ctrl_c_never_checkpoints_half_an_update(data, config, tmp_path, monkeypatch):
    original = Optimizers.step

    def pressed(self, factor):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        original(self, factor)

    monkeypatch.setattr(Optimizers, "step", pressed)
    with pytest.raises(KeyboardInterrupt):
        train(config(), out=tmp_path / "r", quiet=True)
    assert not checkpoint.complete(tmp_path / "r" / "checkpoints")


def test_resume_without_a_checkpoint_starts(data, config, tmp_path):
    run = train(config(max_steps=2), out=tmp_path / "r", resume=True, quiet=True)
    assert read_rows(run, "train")[0]["step"] == 1


def test_an_existing_run_is_not_overwritten_by_accident(data, config, tmp_path):
    train(config(max_steps=2), out=tmp_path / "r", quiet=True)
    with pytest.raises(RunError, match=r"r exists; go on with --resume, or choose another name="):
        train(config(max_steps=2), out=tmp_path / "r", quiet=True)
    train(config(max_steps=1), out=tmp_path / "r", overwrite=True, quiet=True)
    assert [r["step"] for r in read_rows(tmp_path / "r", "train")] == [1]


def test_resume_with_another_configuration_is_refused(data, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        crash_after(patch, 4)
        with pytest.raises(Crash):
            train(config(), out=tmp_path / "r", quiet=True)
    with pytest.raises(RunError, match=r"cannot resume with train\.lr=0\.5, the run has 0\.01"):
        train(config(lr=0.5), out=tmp_path / "r", resume=True, quiet=True)


def start(run: Path, workers: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "slow_run.py"), str(run), str(workers)],
        env=environment,
        start_new_session=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if any(row["step"] >= step for row in read_rows(run)):
            return
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.05)
    pytest.fail("the run never got there")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_killed_process_resumes_bit_identically(tmp_path, workers):
    assert start(tmp_path / "whole", workers).wait() == 0
    process = start(tmp_path / "cut", workers)
    wait_for_step(tmp_path / "cut", 13, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert start(tmp_path / "cut", workers).wait() == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_process_exits_130_and_resumes(tmp_path, workers):
    process = start(tmp_path / "cut", workers)
    wait_for_step(tmp_path / "cut", 7, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the loader's processes get it too
    assert process.wait() == 130
    assert checkpoint.complete(tmp_path / "cut" / "checkpoints")
    assert start(tmp_path / "cut", workers).wait() == 0
