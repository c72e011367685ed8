"""Cells in processes of their own: the same bits, errors of one line, nobody left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from kunlun.errors import KunlunError, RunError
from kunlun.scaling import jobs
from kunlun.scaling.cell import Cell
from kunlun.scaling.jobs import Jobs, finish
from kunlun.scaling.size import Cost
from kunlun.training import checkpoint, source

COST = Cost(100, 50, 1e5)


def cell(config, out: Path, seed: int, **changes) -> Cell:
    settings = dataclasses.replace(config.train, seed=seed, **changes)
    own = dataclasses.replace(config, train=settings)
    return Cell("kunlun", own, COST, out / f"seed{seed}")


@pytest.fixture
def _one_thread(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_two_at_once_are_the_same_bits(config, tmp_path) -> None:
    dataset, said = source.open_data(config.data), []
    found: dict[str, dict] = {}
    for name, how in (("one", Jobs()), ("two", Jobs(2, partial(Path.touch, tmp_path / "began")))):
        cells = [cell(config, tmp_path / name, seed) for seed in (0, 1)]
        found[name] = {}
        finish(
            dict.fromkeys(cells), dataset, said.append,
            lambda c, line, name=name: found[name].update({c.seed: line}), how,
        )  # fmt: skip
    assert said == ["[1/2] kunlun seed 0: training", "[2/2] kunlun seed 1: training"] * 2
    assert (tmp_path / "began").exists()
    for seed in (0, 1):
        one, two = found["one"][seed], found["two"][seed]
        assert (two["test"], two["valid"]) == (one["test"], one["valid"])
        assert (one["jobs"], two["jobs"]) == (1, 2)
        assert two["machine"]["threads"] == 1
        weights = [tmp_path / n / f"seed{seed}/model/model.safetensors" for n in ("one", "two")]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_workers_share_the_threads_unless_told_otherwise(config, tmp_path, monkeypatch) -> None:
    dataset, lines = source.open_data(config.data), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one = cell(config, tmp_path, 0, max_steps=1)
    finish({one: None}, dataset, str, lambda _, line: lines.append(line), Jobs(2))
    assert lines[0]["machine"]["threads"] == 1


@pytest.fixture
def _in_the_background():
    """As what a script starts with &: it, and whom it starts, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_in_the_background")
def test_an_error_is_one_line_and_stops_the_others(config, tmp_path) -> None:
    dataset = source.open_data(config.data)
    long = cell(config, tmp_path, 0, max_steps=None, epochs=1e6)
    wrong = dataclasses.replace(cell(config, tmp_path, 1), config=dataclasses.replace(
        config, data="nowhere", train=dataclasses.replace(config.train, seed=1)))  # fmt: skip
    with pytest.raises(RunError, match=r"^kunlun seed 1: nowhere: no such dataset directory; .*$"):
        finish({long: None, wrong: None}, dataset, str, print, Jobs(2))
    assert not long.file.exists()


@pytest.mark.parametrize(
    ("begin", "message", "code"),
    [
        (partial(signal.raise_signal, signal.SIGKILL), "ended by SIGKILL; was there too little", 1),
        (partial(int, "x"), "ValueError: invalid literal", 1),
        (partial(os.mkdir, "/dev/full/x"), "/dev/full/x: Not a directory$", 2),
    ],
    ids=["killed", "fault", "disk"],
)
def test_a_lost_process_is_named(begin, message, code, config, tmp_path) -> None:
    dataset = source.open_data(config.data)
    with pytest.raises(KunlunError, match=f"^kunlun seed 0: {message}") as found:
        finish({cell(config, tmp_path, 0): None}, dataset, str, print, Jobs(2, begin))
    assert found.value.exit_code == code


def test_what_a_library_prints_is_not_the_end_of_a_worker(config, tmp_path, capfd) -> None:
    wrong = dataclasses.replace(
        cell(config, tmp_path, 0), config=dataclasses.replace(config, data="nowhere")
    )
    dataset = source.open_data(config.data)
    with pytest.raises(RunError, match=r"^kunlun seed 0: nowhere: no such dataset"):
        finish({wrong: None}, dataset, str, print, Jobs(2, partial(print, "welcome to")))
    assert capfd.readouterr().err == "welcome to\n"


def test_nobody_is_left_behind_by_a_ctrl_c_at_the_end_of_a_worker(
    config, tmp_path, monkeypatch
) -> None:
    ended = []

    def close(worker) -> None:
        ended.append(worker)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs._Worker, "close", close)
    dataset = source.open_data(config.data)
    begin = partial(int, "x")
    with pytest.raises(KeyboardInterrupt):
        finish({cell(config, tmp_path, 0): None}, dataset, str, print, Jobs(2, begin))
    assert ended[0].process.returncode is not None  # it was waited for


def test_ctrl_c_stops_the_workers_with_a_checkpoint(config, tmp_path) -> None:
    endless = {"max_steps": None, "epochs": 1e6, "evaluate_every": 1e5, "checkpoint_every": 10**6}
    cells = [cell(config, tmp_path, seed, **endless) for seed in (0, 1)]
    dataset = source.open_data(config.data)

    def ask() -> None:
        deadline = time.monotonic() + 120
        while not all((c.run / "metrics.jsonl").is_file() for c in cells):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        finish(dict.fromkeys(cells), dataset, str, print, Jobs(2))
    sizes = [(c.run / "metrics.jsonl").stat().st_size for c in cells]
    assert all(checkpoint.complete(c.run / "checkpoints") for c in cells)
    assert not any(c.file.exists() for c in cells)
    time.sleep(0.5)
    assert sizes == [(c.run / "metrics.jsonl").stat().st_size for c in cells]  # nobody goes on
