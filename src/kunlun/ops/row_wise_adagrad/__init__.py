"""One optimizer step on the rows of an embedding table that a batch has used."""

from __future__ import annotations

import torch
from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.checks import check_like, check_rows
from kunlun.ops.dispatch import choose
from kunlun.ops.native import rows as native_rows


@torch.no_grad()
def row_wise_adagrad_(
    weight: Tensor,
    total: Tensor,
    rows: Tensor,
    grad: Tensor,
    *,
    lr: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    backend: str | None = None,
) -> None:
    """Adagrad with one accumulator a row, in place; rows that do not occur are not touched.

        g_r      = sum of the gradients of row r
        total_r += mean over columns of g_r^2
        weight_r = (1 - lr weight_decay) weight_r - lr g_r / (sqrt(total_r) + eps)

    Cost: reads the gradients once, reads and writes each row that occurs once. Native: a hash of
    the row numbers, 40 to 48 bytes a gradient and thread, and sums in the order in which gradients
    stand, so the same bits on any number of threads; portable: a sort and a copy of the gradients.

    Args:
        weight: [R, D], a table, contiguous.
        total: [R], of weight's dtype, contiguous.
        rows: int64 [n], rows of the table, in any order and as often as they like.
        grad: [n, D], of weight's dtype, one gradient a row number.
        lr, eps, weight_decay: see above.
        backend: force one; None lets kunlun.ops.choose decide.

    Raises:
        ShapeError: an argument that does not fit, by name; a row outside of the table.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import torch
        >>> from kunlun.ops import row_wise_adagrad_
        >>> weight, total = torch.zeros(3, 1), torch.zeros(3)
        >>> rows, grad = torch.tensor([1, 1]), torch.tensor([[2.0], [2.0]])
        >>> row_wise_adagrad_(weight, total, rows, grad, lr=0.5)
        >>> weight.T, total
        (tensor([[ 0.0000, -0.5000,  0.0000]]), tensor([ 0., 16.,  0.]))
    """
    _check(weight, total, rows, grad)
    chosen = choose("row_wise_adagrad", device=weight.device, dtype=weight.dtype, backend=backend)
    step = native_rows.adagrad if chosen.backend == "native" else _portable
    if not step(weight, total, rows, grad, lr, eps, weight_decay):
        low, high = (int(bound) for bound in rows.aminmax())
        raise ShapeError(f"rows: hold {low} to {high}, but weight has {len(weight)} rows")


def _portable(
    weight: Tensor,
    total: Tensor,
    rows: Tensor,
    grad: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
) -> bool:
    """False: a row outside of the table, nothing changed."""
    if len(rows):
        low, high = torch.stack(rows.aminmax()).tolist()  # together: a GPU is waited for once
        if low < 0 or high >= len(weight):
            return False
    summed = torch.sparse_coo_tensor(rows[None], grad, weight.shape, check_invariants=False)
    summed = summed.coalesce()
    used, g = summed.indices()[0], summed.values()
    total[used] += g.square().mean(dim=1)
    kept = weight[used] * (1 - lr * weight_decay)
    weight[used] = kept - lr * g / (total[used].sqrt() + eps).unsqueeze(1)
    return True


def _check(weight: Tensor, total: Tensor, rows: Tensor, grad: Tensor) -> None:
    check_rows("weight", weight, "R, D")
    check_rows("grad", grad, "n, D")
    check_like("total", total, "weight", weight)
    check_like("grad", grad, "weight", weight)
    for name, x in (("weight", weight), ("total", total)):
        if not x.is_contiguous():
            raise ShapeError(f"{name}: expected contiguous memory, got strides {x.stride()}")
    for name, x, shape in (
        ("total", total, [weight.shape[0]]),
        ("rows", rows, [grad.shape[0]]),
        ("grad", grad, [grad.shape[0], weight.shape[1]]),
    ):
        if list(x.shape) != shape:
            raise ShapeError(f"{name}: expected shape {shape}, got {list(x.shape)}")
    if rows.dtype != torch.int64:
        raise ShapeError(f"rows: expected int64, got {rows.dtype}")
    if rows.device != weight.device:
        raise ShapeError(f"rows: on {rows.device}, but weight is on {weight.device}")
