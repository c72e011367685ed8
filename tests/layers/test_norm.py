"""In which dtype the layers' norms and token maps hand on their results."""

from __future__ import annotations

import pytest
import torch

from kunlun.layers.norm import layer_norm, rms_norm
from kunlun.layers.tokens import mix_tokens


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_decides_what_products_read(compiled: bool) -> None:
    def run(x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        return [layer_norm(x), rms_norm(x), mix_tokens(weight, x)]

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
