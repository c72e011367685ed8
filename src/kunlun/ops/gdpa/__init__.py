"""Generalized dot-product attention: every query row reads its sample's rows without softmax."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kunlun.errors import ShapeError
from kunlun.ops.activations import activation_names
from kunlun.ops.checks import check_kv, check_like, check_offsets, check_rows
from kunlun.ops.dispatch import choose
from kunlun.ops.gdpa.op import gdpa_op


def gdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    *,
    activation: str | Sequence[str] = "gelu_approx",
    scale: float = 1.0,
    out_scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Every row of q reads its own sample's rows k, v through an element-wise activation.

    Per sample and head: out_scale * act(scale * q k^T) v (paper 4.3.1). There is no softmax, so
    k and v act as the two layers of a network generated for that sample, and nothing but the
    inputs is kept for the backward. Both scales are free: `scale` stands inside the activation,
    `out_scale` outside.

    Cost: 4 * H * D * sum_b(Lq_b * Lk_b) FLOPs forward, 2.5 times that backward; reads q, k, v
    and writes the result once, so at least (2 * Lq * H + 2 * Lk * Hkv) * D elements move.
    A sample's result does not depend on its neighbours in the batch, bit for bit.

    Args:
        q: [Lq, H, D] packed query rows; float32, bfloat16, float16 or float64, any strides.
        k: [Lk, Hkv, D] packed key rows; H a multiple of Hkv, head h reads h // (H / Hkv).
        v: [Lk, Hkv, D] packed value rows.
        q_offsets: int32 or int64 [B + 1]; sample b's queries are q[q_offsets[b]:q_offsets[b + 1]].
        kv_offsets: int32 or int64 [B + 1], the same for k and v.
        activation: a name of kunlun.ops.activations, or a list of one name per head.
        scale: multiplies the scores before the activation.
        out_scale: multiplies the activated scores.
        backend: force one; None lets kunlun.ops.choose decide. On a GPU the triton kernels do not
            wait for the offsets' values, so these are not checked there.

    Returns: [Lq, H, D] in q's dtype, computed in float32 (float64 for float64); a sample without
        keys gives zeros. Where half precision is multiplied as it is (native on processors with
        AVX512_BF16 or AMX, triton), sums and activations are float32, but activated scores and
        their gradients are rounded to q's dtype for the product that reads them. A sample that
        holds infinite rows may give NaN where the formula does not.

    Raises:
        ShapeError: an argument that does not fit, by name.
        BackendError: a forced backend that cannot run here, with the reason.

    Example:
        >>> import torch
        >>> from kunlun.ops import gdpa
        >>> q, k, v = torch.ones(3, 1, 2), torch.ones(4, 1, 2), torch.ones(4, 1, 2)
        >>> rows, keys = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 4])
        >>> gdpa(q, k, v, rows, keys, activation="relu", scale=0.5)[:, 0, 0]
        tensor([2., 2., 2.])
    """
    check_rows("q", q)
    check_kv(k, v, q.shape[1], q.shape[2], "q")
    check_like("k", k, "q", q)
    check_like("v", v, "q", q)
    check_offsets("q_offsets", q_offsets, "q", q)
    check_offsets("kv_offsets", kv_offsets, "k", k)
    if q_offsets.shape[0] != kv_offsets.shape[0]:
        raise ShapeError(
            f"kv_offsets: {kv_offsets.shape[0] - 1} samples, but q_offsets has "
            f"{q_offsets.shape[0] - 1}"
        )
    names = activation_names(activation, q.shape[1])
    choose("gdpa", device=q.device, dtype=q.dtype, width=q.shape[2], backend=backend)
    settings = (",".join(names), scale, out_scale, backend or "")
    out: Tensor = gdpa_op(q, k, v, q_offsets, kv_offsets, *settings)
    return out
