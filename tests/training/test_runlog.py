"""What a run says, and about the machine it says it on."""

from __future__ import annotations

import io
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from kunlun.errors import BackendError
from kunlun.training import environment
from kunlun.training.interrupt import interrupts
from kunlun.training.runlog import RunLog, read_rows, write_json

ROW = {
    "kind": "train", "step": 3, "loss": 0.5, "ne": {"click": 0.9, "buy": None}, "mfu": 0.25,
    "samples_per_s": 1234.5, "data_wait": 0.04,
}  # fmt: skip


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with RunLog(tmp_path, 10) as log:
        log.write(ROW)
        log.write({"kind": "valid", "step": 3, "tasks": {"click": {"ne": 0.8, "auc": None}}})
        log.say("done")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "train       3/10  loss 0.5000  NE click 0.9000 buy -  1,234 samples/s  data wait 4%  "
        "MFU 25.0%"
    )
    assert lines[1:] == ["valid       3/10  click: NE 0.8000 AUC -", "done"]


def test_quiet_is_silent_but_writes(tmp_path, capsys):
    with RunLog(tmp_path, 10, quiet=True) as log:
        log.write(ROW)
        log.say("done")
    assert capsys.readouterr().err == ""
    assert read_rows(tmp_path) == [ROW]


def test_resume_drops_rows_that_come_again_and_a_torn_last_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [{**ROW, "step": step} for step in (1, 2, 3)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"kind": "tr')
    with RunLog(tmp_path, 10, resume_step=2, quiet=True) as log:
        log.write({**ROW, "step": 9})
    assert [r["step"] for r in read_rows(tmp_path)] == [1, 2, 9]


def test_tensorboard_has_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 10, quiet=True) as log:
        log.write(ROW)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/ne/click", "train/mfu", "train/samples_per_s", "train/data_wait",
    }  # fmt: skip
    assert events.Scalars("train/ne/click")[0].step == 3


def test_peak_is_measured_without_touching_the_random_state():
    before = torch.get_rng_state()
    assert environment.peak_flops(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(environment, "wait", lambda _: None)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: np.ones((2, 2)))  # it is measured
    found = environment.peak_flops(torch.device("cuda"), torch.bfloat16)
    assert found == peak if peak else found not in {bf16 for bf16, _ in environment.PEAK.values()}


def test_a_message_is_printed_as_it_is(tmp_path, monkeypatch):
    with RunLog(tmp_path, 1) as log:
        log.bar = SimpleNamespace(console=Console(file=io.StringIO(), width=80), stop=lambda: None)
        log.say("run: runs/[old]model")
        assert log.bar.console.file.getvalue() == "run: runs/[old]model\n"


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"ne": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_environment_names_versions_and_machine():
    found = environment.describe(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["cores"] >= 1
    json.dumps(found)


def test_devices_that_are_not_there_are_refused():
    assert environment.pick_device("cpu").type == "cpu"
    with pytest.raises(BackendError, match=r"train\.device 'gpu' is no device"):
        environment.pick_device("gpu")
    with pytest.raises(BackendError, match=r"train\.device 'meta' is not supported; use auto"):
        environment.pick_device("meta")
    if not torch.cuda.is_available():
        assert environment.pick_device("auto").type == "cpu"
        with pytest.raises(BackendError, match=r"train\.device is 'cuda', but torch sees no CUDA"):
            environment.pick_device("cuda")


def test_the_first_ctrl_c_asks_and_the_second_acts():
    before = signal.getsignal(signal.SIGINT)
    with interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts() as asked:
            signal.raise_signal(signal.SIGINT)
        assert not asked.is_set()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
