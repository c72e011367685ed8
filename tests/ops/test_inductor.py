"""Every operator through Inductor: packaged ahead of time, and compiled whole with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kunlun.ops import gdpa, rotary, seed_attention, sum_kron, window_attention
from tests.ops.helpers import gradients, needs_native, normal, offsets_of

pytestmark = [
    needs_native,  # the same compiler
    pytest.mark.xdist_group("inductor"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torch about torch
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

HEADS, WIDTH, KEYS, SEEDS = 2, 8, 3, 4
LENGTHS = [(5, 0, 7), (4,), (0,), (1, 1, 30, 0)]


class Operators(nn.Module):
    def forward(
        self,
        x: Tensor,
        angle: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor,
        kv_offsets: Tensor,
        seeds: Tensor,
        z: Tensor,
        w: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = rotary(x, angle)
        x = x + gdpa(x, k, v, offsets, kv_offsets)
        x = x + window_attention(x, x, x, offsets, window=3)
        pooled = seed_attention(seeds, x, x, offsets)
        return x, sum_kron(pooled.flatten(2), z, w)


def inputs(lengths: Sequence[int]) -> tuple[Tensor, ...]:
    n, rows = len(lengths), sum(lengths)
    return (
        normal(rows, HEADS, WIDTH),
        normal(rows, WIDTH // 2, seed=1),
        normal(n * KEYS, HEADS, WIDTH, seed=2),
        normal(n * KEYS, HEADS, WIDTH, seed=3),
        offsets_of(lengths),
        torch.arange(n + 1) * KEYS,
        normal(SEEDS, HEADS, WIDTH, seed=4),
        normal(2, SEEDS, 3, seed=5),
        normal(2, HEADS * WIDTH, 5, seed=6),
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_package_made_ahead_of_time_takes_any_batch(tmp_path: Path) -> None:
    dynamic = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        Operators(), inputs((5, 0, 7)), dynamic_shapes=(*[dynamic] * 6, None, None, None)
    )
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "operators.pt2")
    )
    packaged = torch._inductor.aoti_load_package(path)
    for lengths in LENGTHS:
        arguments = inputs(lengths)
        for got, want in zip(packaged(*arguments), Operators()(*arguments), strict=True):
            torch.testing.assert_close(got, want, msg=lambda text, at=lengths: f"{at}: {text}")


def test_compiled_whole_with_gradients() -> None:
    module = Operators()
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for lengths in LENGTHS:
        *floats, offsets, kv_offsets, seeds, z, w = inputs(lengths)

        def run(
            model: nn.Module, *leaves: Tensor, at: tuple[Tensor, Tensor] = (offsets, kv_offsets)
        ) -> Tensor:
            x, y = model(*leaves[:4], *at, *leaves[4:])
            return torch.cat([x.flatten(), y.flatten()])

        leaves = [*floats, seeds, z, w]
        got = gradients(lambda *a, run=run: run(compiled, *a), leaves)
        want = gradients(lambda *a, run=run: run(module, *a), leaves)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, at=lengths: f"{at}: {text}")
