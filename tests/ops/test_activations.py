"""Activations where their powers leave float32."""

from __future__ import annotations

import pytest
import torch

from kunlun.ops.activations import ACTIVATIONS

FAR = (1e15, 1e20, 1e38)


@pytest.mark.parametrize("name", ["gelu", "gelu_approx", "silu", "relu", "leaky_relu"])
def test_activations_stay_finite_at_extremes(name: str) -> None:
    x = torch.tensor([*FAR, *(-n for n in FAR)])
    exact = x.double().requires_grad_()
    want = ACTIVATIONS[name].formula(exact)
    want_slope = torch.autograd.grad(want.sum(), exact)[0]
    slope = torch.ones_like(x)
    got = ACTIVATIONS[name].backward_(x.clone(), slope)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(got.double(), want.detach(), rtol=eps, atol=eps)
    torch.testing.assert_close(slope.double(), want_slope, rtol=eps, atol=eps)
    forward = ACTIVATIONS[name].forward_(x.clone())
    torch.testing.assert_close(forward, got, rtol=eps, atol=eps)
