"""Hypothesis strategies for tests of layers and models that read jagged batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kunlun.errors import BackendError
from kunlun.ops.jagged import Jagged

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def jagged(
    *,
    width: Sequence[int] = (4,),
    max_sequences: int = 6,
    max_len: int = 12,
    dtype: torch.dtype = torch.float32,
) -> SearchStrategy[Jagged]:
    """Jagged batches that break naive code: empty, single-row and very uneven sequences.

    Lengths favour 0, 1 and max_len; values are reproducible normal numbers [L, *width]; offsets
    are int32 or int64. Shrinks towards few short sequences.

    Raises: BackendError if hypothesis is not installed.

    Example:
        >>> from kunlun.testing import jagged
        >>> batch = jagged(width=(2, 8)).example()  # doctest: +SKIP
    """
    try:
        from hypothesis import strategies as st
    except ImportError:
        raise BackendError(
            "kunlun.testing needs hypothesis: pip install 'kunlun-rec[dev]'"
        ) from None

    def build(lengths: list[int], seed: int, offsets_dtype: torch.dtype) -> Jagged:
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(sum(lengths), *width, generator=generator, dtype=torch.float64)
        return Jagged(values.to(dtype), offsets.to(offsets_dtype), max_len)

    length = st.one_of(st.sampled_from([0, 1, max_len]), st.integers(0, max_len))
    return st.builds(
        build,
        st.lists(length, min_size=1, max_size=max_sequences),
        st.integers(0, 2**16),
        st.sampled_from([torch.int64, torch.int32]),
    )
