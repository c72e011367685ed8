"""gdpa's Triton kernels, interpreted on the CPU; tests/ops/interpreted_gdpa.py holds the cases."""

from __future__ import annotations

from tests.ops.interpreter import assert_passes_interpreted


def test_gdpa_kernels_interpreted() -> None:
    assert_passes_interpreted("interpreted_gdpa.py")
