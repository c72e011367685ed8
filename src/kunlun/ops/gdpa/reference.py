"""The paper's equation for one sample and head at a time, in float64, for tests only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kunlun.ops.activations import ACTIVATIONS, activation_names


def gdpa_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    *,
    activation: str | Sequence[str] = "gelu_approx",
    scale: float = 1.0,
    out_scale: float = 1.0,
) -> Tensor:
    """out_scale * act(scale * q k^T) v, paper 4.3.1, literally.

    q [Lq, H, D], k and v [Lk, Hkv, D] -> float64 [Lq, H, D]; no keys give zeros. Differentiable.
    """
    names = activation_names(activation, q.shape[1])
    share = q.shape[1] // k.shape[1]
    samples = []
    for b in range(len(q_offsets) - 1):
        rows = slice(int(q_offsets[b]), int(q_offsets[b + 1]))
        keys = slice(int(kv_offsets[b]), int(kv_offsets[b + 1]))
        heads = []
        for h, name in enumerate(names):
            scores = scale * q[rows, h].double() @ k[keys, h // share].double().T
            weights = out_scale * ACTIVATIONS[name].formula(scores)
            heads.append(weights @ v[keys, h // share].double())
        samples.append(torch.stack(heads, dim=1))
    return torch.cat(samples) if samples else q.double()
