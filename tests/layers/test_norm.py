"""In which dtype the layers' norms and token maps hand on their results."""

from __future__ import annotations

import pytest
import torch

from kunlun.layers.norm import layer_norm, rms_norm
from kunlun.layers.tokens import mix_tokens


def each_layer(x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    return [layer_norm(x), rms_norm(x), mix_tokens(weight, x)]


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_decides_what_products_read(compiled: bool) -> None:
    run = each_layer
    if compiled:
        run = torch.compile(run, fullgraph=True, backend="aot_eager")
    x, weight = torch.randn(2, 3, 8), torch.randn(4, 3)
    plain = run(x, weight)
    assert [y.dtype for y in plain] == [torch.float32] * 3
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(x, weight)
    assert [y.dtype for y in narrow] == [torch.bfloat16] * 3
    for a, b in zip(narrow, plain, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(plain[2], torch.matmul(weight, x))


def test_autocast_leaves_float64_alone() -> None:
    x, weight = torch.randn(2, 3, 8).double(), torch.randn(4, 3).double()
    plain = each_layer(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.matmul(weight, x).dtype == torch.float64  # what we follow
        under = each_layer(x, weight)
    for a, b in zip(under, plain, strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)


def test_meta_tensors_keep_their_dtype_also_under_autocast() -> None:
    x, weight = torch.empty(2, 3, 8, device="meta"), torch.empty(4, 3, device="meta")
    with torch.autocast("cpu", torch.bfloat16):
        under = each_layer(x, weight)
    for y in (*each_layer(x, weight), *under):
        assert (y.device.type, y.dtype) == ("meta", torch.float32)
    assert [tuple(y.shape) for y in under] == [(2, 3, 8), (2, 3, 8), (2, 4, 8)]
