"""sum_kron against its float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kunlun.ops import sum_kron
from kunlun.ops.flops import sum_kron_flops, sum_kron_rows_first, sum_kron_width_first
from kunlun.ops.sum_kron.op import sum_kron_backward_op, sum_kron_op
from kunlun.ops.sum_kron.reference import sum_kron_reference
from tests.ops.helpers import assert_matches, gradients, normal

CASES = [  # n, k, S, T, D, D2, dtype; both orders of contraction occur
    (5, 2, 9, 4, 6, 7, torch.float32),
    (5, 3, 4, 9, 7, 3, torch.float32),
    (1, 1, 1, 1, 1, 1, torch.float32),
    (0, 2, 4, 3, 5, 5, torch.float32),
    (8, 4, 32, 16, 24, 40, torch.float32),
    (8, 4, 32, 16, 24, 40, torch.bfloat16),
]


def make(case: tuple) -> list[Tensor]:
    n, k, s, t, d, d2, dtype = case
    return [
        normal(n, s, d, dtype=dtype, seed=1),
        normal(k, s, t, dtype=dtype, seed=2) / s**0.5,
        normal(k, d, d2, dtype=dtype, seed=3) / (k * d) ** 0.5,
    ]


def _case_id(case: tuple) -> str:
    return "n{}-k{}-S{}-T{}-D{}-D2.{}-{}".format(*case[:6], str(case[6])[6:])


@pytest.mark.parametrize("case", CASES, ids=_case_id)
def test_sum_kron_matches_reference(case: tuple) -> None:
    assert_matches(sum_kron, sum_kron_reference, make(case), ("x", "z", "w"))


def test_sum_kron_cases_take_both_orders() -> None:
    orders = {sum_kron_rows_first(*c[2:4], *c[1:2], *c[4:6]) for c in CASES}
    assert len(orders) > 1
    cheaper = {
        sum_kron_rows_first(s, t, k, d, d2) <= sum_kron_width_first(s, t, k, d, d2)
        for _, k, s, t, d, d2, _ in CASES
    }
    assert cheaper == {True, False}


@pytest.mark.parametrize("sizes", [(2, 2, 3, 2, 3, 2), (2, 2, 2, 5, 4, 2)])
def test_sum_kron_gradcheck(sizes: tuple[int, ...]) -> None:
    inputs = [x.requires_grad_() for x in make((*sizes, torch.float64))]
    assert torch.autograd.gradcheck(sum_kron, inputs)


@pytest.mark.parametrize("case", CASES[:2], ids=_case_id)
def test_sum_kron_takes_strided_inputs(case: tuple) -> None:
    x, z, w = make(case)
    strided = [t.transpose(0, 2).contiguous().transpose(0, 2) for t in (x, z, w)]
    for a, b in zip(gradients(sum_kron, strided), gradients(sum_kron, [x, z, w]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASES[:2], ids=_case_id)
def test_sum_kron_opcheck(case: tuple) -> None:
    inputs = make(case)
    torch.library.opcheck(sum_kron_op, tuple(x.clone().requires_grad_() for x in inputs))
    out, between = sum_kron_op(*inputs)
    torch.library.opcheck(sum_kron_backward_op, (out, *inputs, between))


@pytest.mark.parametrize("case", CASES[:5], ids=_case_id)
def test_sum_kron_flops_equal_the_counters(case: tuple) -> None:
    n, k, s, t, d, d2, _ = case
    inputs = [x.detach().requires_grad_() for x in make(case)]
    with FlopCounterMode(display=False) as forward:
        out = sum_kron(*inputs)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert forward.get_total_flops() == sum_kron_flops(n, s, t, k, d, d2)
    assert backward.get_total_flops() == 2 * sum_kron_flops(n, s, t, k, d, d2)


def test_sum_kron_sample_ignores_what_its_neighbours_hold() -> None:
    x, z, w = make(CASES[4])
    dirty = torch.full_like(x, float("nan"))
    dirty[3] = x[3]
    assert torch.equal(sum_kron(x, z, w)[3], sum_kron(dirty, z, w)[3])
