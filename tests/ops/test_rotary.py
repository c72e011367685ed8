"""rotary against its float64 reference."""

from __future__ import annotations

import pytest
import torch

from kunlun.ops import rotary
from kunlun.ops.rotary.op import rotary_op
from kunlun.ops.rotary.reference import rotary_reference
from tests.ops.helpers import TOLERANCE, bits, gradients, normal


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("rows", "heads", "dim"), [(9, 3, 24), (1, 1, 2), (0, 2, 8)])
def test_rotary_matches_reference(rows: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    x = normal(rows, heads, dim, dtype=dtype)
    angle = normal(rows, dim // 2, seed=1) * 10
    got, want = gradients(rotary, [x, angle]), gradients(rotary_reference, [x, angle.double()])
    assert got[0].dtype == dtype
    for a, b in zip(got, want, strict=True):
        bound = max(TOLERANCE[dtype], 2e-5) * heads * max(float(b.abs().amax() if rows else 0), 1)
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=bound)


def test_rotary_gradcheck() -> None:
    x, angle = normal(3, 2, 6, dtype=torch.float64), normal(3, 3, dtype=torch.float64, seed=1)
    assert torch.autograd.gradcheck(rotary, [x.requires_grad_(), angle.requires_grad_()])


def test_rotary_products_depend_on_differences_of_angles_only() -> None:
    q, k, angle = normal(2, 1, 8), normal(2, 1, 8, seed=1), normal(2, 4, seed=2)
    shift = normal(1, 4, seed=3)
    before = (rotary(q, angle)[0] * rotary(k, angle)[1]).sum()
    after = (rotary(q, angle + shift)[0] * rotary(k, angle + shift)[1]).sum()
    torch.testing.assert_close(before, after)


def test_rotary_takes_strided_inputs() -> None:
    x, angle = normal(8, 3, 5).permute(2, 1, 0), normal(4, 5).T
    assert torch.equal(rotary(x, angle), rotary(x.contiguous(), angle.contiguous()))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dim", [4, 8, 16, 24])
def test_rotary_row_is_bit_equal_wherever_it_stands(heads: int, dim: int) -> None:
    x, angle = normal(37, heads, dim), normal(37, dim // 2, seed=1) * 10
    everything = rotary(x, angle)
    for rows in (1, 2, 3, 5, 8, 13, 36):
        assert torch.equal(bits(rotary(x[:rows], angle[:rows])), bits(everything[:rows]))
        assert torch.equal(bits(rotary(x[-rows:], angle[-rows:])), bits(everything[-rows:]))


def test_rotary_opcheck() -> None:
    x, angle = normal(5, 2, 8).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    torch.library.opcheck(rotary_op, (x, angle))
