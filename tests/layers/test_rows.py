"""Softmax attention to generated rows against a loop over samples in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.layers.personalized_ffn import PersonalizedFFN, PersonalizedFFNConfig
from kunlun.layers.rows import attend_to_rows
from kunlun.ops.jagged import Jagged

F64 = torch.float64
OFFSETS = torch.tensor([0, 3, 3, 4, 9])


def _make(rows: int, heads: int = 2, width: int = 4) -> list[Tensor]:
    g = torch.Generator().manual_seed(rows)
    n, length = len(OFFSETS) - 1, int(OFFSETS[-1])
    return [
        torch.randn(count, heads, width, dtype=F64, generator=g, requires_grad=True)
        for count in (length, n * rows, n * rows)
    ]


def _loop(q: Tensor, k: Tensor, v: Tensor, rows: int) -> Tensor:
    parts = []
    for i in range(len(OFFSETS) - 1):
        mine = slice(i * rows, (i + 1) * rows)
        own = q[OFFSETS[i] : OFFSETS[i + 1]]
        scores = torch.einsum("lhd,rhd->hlr", own, k[mine]) / q.shape[2] ** 0.5
        parts.append(torch.einsum("hlr,rhd->lhd", scores.softmax(-1), v[mine]))
    return torch.cat(parts)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 11])
def test_attention_to_rows_and_its_gradient(rows: int) -> None:
    inputs = _make(rows)
    got, expected = attend_to_rows(*inputs, OFFSETS, rows), _loop(*inputs, rows)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for have, want in zip(torch.autograd.grad((got * weight).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(have, want)


def test_large_scores_stay_finite() -> None:
    q, k, v = (x.detach().float() for x in _make(3))
    got = attend_to_rows(1e4 * q, k, v, OFFSETS, 3)
    assert torch.isfinite(got).all()
    assert got.abs().max() <= v.abs().max()


def test_no_events_at_all() -> None:
    q, k, v = _make(3)
    assert attend_to_rows(q[:0], k, v, torch.zeros(5, dtype=torch.int64), 3).shape == (0, 2, 4)


def test_softmax_block_against_equations() -> None:
    """u = LN(S); y = softmax(u K^T / sqrt(d_h)) V + u; S' = RMSNorm(y) + S."""
    torch.manual_seed(0)
    config = PersonalizedFFNConfig(kind="softmax", rows=6)
    block = PersonalizedFFN(8, 2, max_len=50, n_sum=3, context=5, config=config).double()
    s, x_sum = torch.randn(9, 8, dtype=F64), torch.randn(4, 3, 5, dtype=F64)
    u = F.layer_norm(s, (8,))
    rows = F.rms_norm(block.expand @ x_sum, (5,), eps=1e-5)  # [n, n_kv, d]
    k, v = rows @ block.key, rows @ block.value
    y = torch.zeros_like(u)
    for i in range(4):
        own = slice(OFFSETS[i], OFFSETS[i + 1])
        for h in range(2):
            c = slice(4 * h, 4 * h + 4)
            scores = u[own, c] @ k[i, :, c].T / 4**0.5
            y[own, c] = block.gain[h] * (scores.softmax(-1) @ v[i, :, c])
    expected = F.rms_norm(y + u, (8,), eps=1e-5) + s
    got = block(Jagged(s, OFFSETS, 50), x_sum).values
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
