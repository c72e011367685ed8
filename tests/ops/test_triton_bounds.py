"""Triton kernels given wrong offsets, interpreted; interpreted_bounds.py holds the cases."""

from __future__ import annotations

from tests.ops.interpreter import assert_passes_interpreted


def test_kernels_keep_to_their_tensors_interpreted() -> None:
    assert_passes_interpreted("interpreted_bounds.py")
