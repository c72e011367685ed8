"""mix_rows against its float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kunlun.errors import ShapeError
from kunlun.ops import mix_rows
from kunlun.ops.mix_rows import portable
from kunlun.ops.mix_rows.op import mix_rows_backward_op, mix_rows_op
from kunlun.ops.mix_rows.reference import mix_rows_reference
from tests.ops.helpers import TOLERANCE, assert_matches, bits, gradients, normal

CASES = [  # n, S, T, D
    (5, 3, 4, 7),
    (5, 40, 24, 3),
    (1, 1, 1, 1),
    (0, 3, 2, 4),
]


def make(case: tuple, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    n, s, t, d = case
    return [normal(n, s, d, dtype=dtype, seed=1), normal(s, t, dtype=dtype, seed=2) / s**0.5]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "n{}-S{}-T{}-D{}".format(*c))
def test_mix_rows_matches_reference(case: tuple, dtype: torch.dtype) -> None:
    assert_matches(mix_rows, mix_rows_reference, make(case, dtype), ("x", "z"))


def test_mix_rows_gradient_of_z_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "_PRODUCTS", 2 * 40 * 24)
    assert_matches(mix_rows, mix_rows_reference, make((5, 40, 24, 3)), ("x", "z"))


def test_mix_rows_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in make((3, 2, 4, 3), torch.float64)]
    assert torch.autograd.gradcheck(mix_rows, inputs)


def test_mix_rows_takes_strided_inputs_and_repeats_its_bits() -> None:
    x, z = normal(7, 6, 5).permute(1, 2, 0), normal(4, 5).T
    got = gradients(mix_rows, [x, z])
    for a, b in zip(got, gradients(mix_rows, [x.contiguous(), z.contiguous()]), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(got, gradients(mix_rows, [x, z]), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_mix_rows_sample_ignores_what_its_neighbours_hold() -> None:
    x, z = make((8, 12, 16, 24))
    dirty = torch.full_like(x, float("nan"))
    dirty[3] = x[3]
    assert torch.equal(mix_rows(x, z)[3], mix_rows(dirty, z)[3])


def test_mix_rows_opcheck() -> None:
    x, z = (t.requires_grad_() for t in make((5, 3, 4, 6)))
    torch.library.opcheck(mix_rows_op, (x, z))
    torch.library.opcheck(mix_rows_backward_op, (normal(5, 4, 6), x.detach(), z.detach()))


def test_mix_rows_flops() -> None:
    x, z = (t.requires_grad_() for t in make((5, 3, 4, 6)))
    with FlopCounterMode(display=False) as forward:
        out = mix_rows(x, z)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert forward.get_total_flops() == 2 * 5 * 3 * 4 * 6
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_mix_rows_names_the_argument_it_refuses() -> None:
    x, z = make((5, 3, 4, 6))
    with pytest.raises(ShapeError, match=r"^x: expected \[n, S, D\], got shape \[3, 6\]$"):
        mix_rows(x[0], z)
    with pytest.raises(ShapeError, match=r"^z: mixes 2 rows, but x has 3$"):
        mix_rows(x, z[:2])
    with pytest.raises(ShapeError, match=r"^z: dtype torch.float64 differs from x's "):
        mix_rows(x, z.double())
