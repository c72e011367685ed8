"""seed_attention's Triton kernels, interpreted; interpreted_seed.py holds the cases."""

from __future__ import annotations

from tests.ops.interpreter import assert_passes_interpreted


def test_seed_attention_kernels_interpreted() -> None:
    assert_passes_interpreted("interpreted_seed.py")
