"""Whole or not there."""

from __future__ import annotations

import json

import pytest
import torch

from kunlun.errors import RunError
from kunlun.training import checkpoint


def write(folder, step, keep=3):
    return checkpoint.save(folder, step, {"w": torch.full((4,), float(step))}, {"step": step}, keep)


def test_round_trip(tmp_path):
    place = write(tmp_path, 7)
    tensors, state = checkpoint.load(place)
    assert torch.equal(tensors["w"], torch.full((4,), 7.0))
    assert state == {"step": 7}
    assert sorted(p.name for p in place.iterdir()) == ["DONE", "state.json", "state.safetensors"]


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100, 9):
        write(tmp_path, step, keep=2)
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step_00000010", "step_00000100"]
    assert len(list(tmp_path.iterdir())) == 2


def test_writing_the_same_step_again_replaces_it(tmp_path):
    write(tmp_path, 5)
    checkpoint.save(tmp_path, 5, {"w": torch.zeros(1)}, {"step": 5}, 3)
    assert len(checkpoint.load(checkpoint.complete(tmp_path)[0])[0]["w"]) == 1


@pytest.mark.parametrize("tear", ["no DONE", "short tensors", "no state", "empty DONE"])
def test_torn_checkpoints_are_never_picked(tmp_path, tear):
    good, torn = write(tmp_path, 1), write(tmp_path, 2)
    if tear == "no DONE":
        (torn / "DONE").unlink()
    elif tear == "short tensors":
        content = (torn / "state.safetensors").read_bytes()
        (torn / "state.safetensors").write_bytes(content[:-1])
    elif tear == "no state":
        (torn / "state.json").unlink()
    else:
        (torn / "DONE").write_text("")
    assert checkpoint.complete(tmp_path) == [good]


def test_leftovers_of_a_crash_while_writing_are_passed_over_and_removed(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".writing_step_00000002").mkdir()
    assert len(checkpoint.complete(tmp_path)) == 1
    write(tmp_path, 3)
    assert not list(tmp_path.glob(".writing_*"))


def test_unreadable_content_is_one_clear_line(tmp_path):
    place = write(tmp_path, 1)
    (place / "state.json").write_text(json.dumps({"step": 1})[:-1])
    with pytest.raises(RunError, match=r"step_00000001: cannot be read .*; delete it to resume"):
        checkpoint.load(place)
