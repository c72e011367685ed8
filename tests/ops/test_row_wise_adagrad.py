"""row_wise_adagrad_ against its equations, one row after another in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kunlun.errors import BackendError, ShapeError
from kunlun.ops import native, row_wise_adagrad_
from tests.ops.helpers import BACKENDS, needs_native, normal, use


def reference(
    weight: Tensor, total: Tensor, rows: Tensor, grad: Tensor, lr: float, eps: float, decay: float
) -> tuple[Tensor, Tensor]:
    weight, total = weight.double().clone(), total.double().clone()
    for row in set(rows.tolist()):
        g = grad[rows == row].double().sum(0)
        total[row] += g.square().mean()
        weight[row] = (1 - lr * decay) * weight[row] - lr * g / (total[row].sqrt() + eps)
    return weight, total


def assert_steps_match(backend: str, rows: Tensor, table: int, width: int, decay: float) -> None:
    weight, total = normal(table, width, seed=1), normal(table, seed=2).square()
    for step in range(2):
        grad = normal(len(rows), width, seed=3 + step)
        expected = reference(weight, total, rows, grad, 0.3, 1e-6, decay)
        before = weight.clone()
        row_wise_adagrad_(
            weight, total, rows, grad, lr=0.3, eps=1e-6, weight_decay=decay, backend=backend
        )
        torch.testing.assert_close(weight.double(), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(total.double(), expected[1], rtol=1e-5, atol=1e-6)
        untouched = ~torch.isin(torch.arange(table), rows)
        assert torch.equal(weight[untouched], before[untouched])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 11), max_size=70),
    width=st.integers(1, 37),
    decay=st.sampled_from([0.0, 0.2]),
)
def test_any_rows(backend: str, rows: list[int], width: int, decay: float) -> None:
    assert_steps_match(backend, torch.tensor(rows, dtype=torch.int64), 12, width, decay)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_million_rows_of_which_few_occur(backend: str) -> None:
    """Row numbers far apart and dense, and one of them thousands of times."""
    rows = torch.cat([torch.arange(0, 1 << 20, 1 << 12), torch.arange(300), torch.arange(99)])
    rows = torch.cat([rows, torch.full((3000,), 77)])
    assert_steps_match(backend, rows, 1 << 20, 3, 0.1)


@needs_native
@pytest.mark.parametrize("isa", native.ISAS)
def test_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(isa, monkeypatch)
    for width in (1, 8, 19, 32):
        assert_steps_match("native", torch.tensor([5, 2, 5, 5, 0, 2]), 7, width, 0.1)
        weight, grad = torch.zeros(2, width), torch.zeros(1, width)
        grad[0, -1] = float("nan")
        row_wise_adagrad_(weight, torch.zeros(2), torch.tensor([1]), grad, lr=0.1)
        assert bool(weight[1].isnan().all())
        assert bool(weight[0].eq(0).all())


@needs_native
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    rows = torch.randint(0, 9000, (40_000,), generator=torch.Generator().manual_seed(0))
    grad, before = normal(40_000, 16), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            weight, total = normal(9000, 16, seed=1), torch.zeros(9000)
            row_wise_adagrad_(weight, total, rows, grad, lr=0.1, backend="native")
            results.append(torch.cat([weight.flatten(), total]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_gradients(backend: str) -> None:
    grad, rows = normal(4, 12), torch.tensor([1, 9, 0, 9, 1, 9, 2, 9])
    results = []
    for g, r in ((grad[:, ::2], rows[::2]), (grad[:, ::2].contiguous(), rows[::2].contiguous())):
        weight, total = torch.zeros(3, 6), torch.zeros(3)
        row_wise_adagrad_(weight, total, r, g, lr=0.1, backend=backend)
        results.append(weight)
    assert torch.equal(*results)


@needs_native
def test_gradients_of_a_row_are_added_in_the_order_in_which_they_stand() -> None:
    values = torch.tensor([1e8, 1.0, -1e8, 1.0])  # any other order gives 2 or 0
    weight, total = torch.zeros(1, 1), torch.zeros(1)
    row_wise_adagrad_(weight, total, torch.zeros(4).long(), values[:, None], lr=0.1)
    assert float(total) == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_changes_in_place_and_says_so(backend: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    kept = (weight * weight).sum()  # its backward needs the weight as it was
    row_wise_adagrad_(
        weight, torch.zeros(2), torch.tensor([1]), torch.ones(1, 3), lr=0.1, backend=backend
    )
    assert weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_outside_of_the_table_changes_nothing(row: int, backend: str) -> None:
    weight, total = torch.ones(3, 2), torch.zeros(3)
    with pytest.raises(ShapeError, match=r"rows: hold -?\d to \d, but weight has 3 rows"):
        row_wise_adagrad_(
            weight, total, torch.tensor([0, row]), torch.ones(2, 2), lr=0.1, backend=backend
        )
    assert bool(weight.eq(1).all())
    assert bool(total.eq(0).all())


GOOD = {
    "weight": torch.zeros(3, 2), "total": torch.zeros(3), "rows": torch.zeros(4).long(),
    "grad": torch.zeros(4, 2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", torch.zeros(3), r"weight: expected \[R, D\], got shape \[3\]"),
        ("weight", torch.zeros(3, 0), r"weight: expected \[R, D\] with D at least 1, got shape"),
        ("weight", torch.zeros(3, 2).long(), "weight: expected a floating-point dtype"),
        ("weight", torch.zeros(2, 3).T, r"weight: expected contiguous memory, got strides"),
        ("total", torch.zeros(4), r"total: expected shape \[3\], got \[4\]"),
        ("total", torch.zeros(3).double(), "total: dtype torch.float64 differs from weight's"),
        ("rows", torch.zeros(3).long(), r"rows: expected shape \[4\], got \[3\]"),
        ("rows", torch.zeros(4).int(), "rows: expected int64, got torch.int32"),
        ("rows", torch.zeros(4, device="meta").long(), "rows: on meta, but weight is on cpu"),
        ("grad", torch.tensor(1.0), r"grad: expected \[n, D\], got shape \[\]"),
        ("grad", torch.zeros(4, 3), r"grad: expected shape \[4, 2\], got \[4, 3\]"),
        ("grad", torch.zeros(4, 2).half(), "grad: dtype torch.float16 differs from weight's"),
    ],
)
def test_wrong_arguments(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        row_wise_adagrad_(**{**GOOD, name: value}, lr=0.1)


def test_other_dtypes_are_not_native() -> None:
    rows = torch.tensor([2, 0, 2])
    weight, total = normal(3, 2, seed=1).double(), torch.zeros(3).double()
    grad = normal(3, 2).double()
    expected = reference(weight, total, rows, grad, 0.1, 1e-8, 0.0)
    with pytest.raises(BackendError, match="native row_wise_adagrad computes float32 and the dty"):
        row_wise_adagrad_(weight, total, rows, grad, lr=0.1, backend="native")
    row_wise_adagrad_(weight, total, rows, grad, lr=0.1)
    torch.testing.assert_close(weight, expected[0])
    half = [x.bfloat16() for x in (normal(3, 2, seed=1), torch.zeros(3), grad)]
    row_wise_adagrad_(half[0], half[1], rows, half[2], lr=0.1)
    torch.testing.assert_close(half[0].double(), expected[0], rtol=0.02, atol=0.02)


def test_a_table_without_rows() -> None:
    weight = torch.zeros(0, 2)
    row_wise_adagrad_(weight, torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 2), lr=0.1)
    with pytest.raises(ShapeError, match="rows: hold 0 to 0, but weight has 0 rows"):
        row_wise_adagrad_(weight, torch.zeros(0), torch.zeros(1).long(), torch.zeros(1, 2), lr=0.1)
