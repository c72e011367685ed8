"""ROTE: relative, truncation-proof angles."""

from __future__ import annotations

import torch

from kunlun.layers.rote import Rote, RoteConfig
from kunlun.ops.jagged import Jagged

OFFSETS = torch.tensor([0, 0, 1, 5])
AGE = torch.tensor([30.0, 86400.0, 3600.0, 60.0, 0.0])


def _events(n: int = 5, offsets: torch.Tensor = OFFSETS) -> Jagged:
    return Jagged(torch.zeros(n, 8), offsets, 16)


def test_angle_is_position_plus_log_time() -> None:
    rote = Rote(4, RoteConfig(t_scale=60.0))
    angle = rote(_events(), AGE)
    position = torch.tensor([0.0, 3, 2, 1, 0])
    for i, (theta, phi) in enumerate(zip([1.0, 0.01], [2 * torch.pi, torch.pi / 2], strict=True)):
        expected = position * theta + torch.log1p(AGE / 60) * phi
        torch.testing.assert_close(angle[:, i], expected)


def test_cutting_old_events_changes_no_angle() -> None:
    rote = Rote(4, RoteConfig())
    whole = rote(_events(), AGE)
    cut = rote(_events(3, torch.tensor([0, 0, 1, 3])), AGE[[0, 3, 4]])
    assert torch.equal(cut, whole[[0, 3, 4]])


def test_gap_to_previous_restarts_with_each_sequence() -> None:
    rote = Rote(2, RoteConfig(gap="previous", t_scale=1.0))
    time = rote(_events(), AGE) - Rote(2, RoteConfig(mode="rope"))(_events(), AGE)
    gaps = torch.tensor([0.0, 0.0, 82800.0, 3540.0, 60.0])
    torch.testing.assert_close(time[:, 0], torch.log1p(gaps) * 2 * torch.pi, rtol=1e-5, atol=1e-4)


def test_mode_none_has_no_angle_and_rope_no_parameter() -> None:
    assert Rote(4, RoteConfig(mode="none"))(_events(), AGE) is None
    assert list(Rote(4, RoteConfig(mode="rope")).parameters()) == []
