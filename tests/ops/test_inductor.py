"""Every operator through Inductor: packaged ahead of time, and compiled whole with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kunlun.ops import (
    add_rms_norm,
    gdpa,
    gelu_approx,
    hstu_attention,
    layer_norm,
    mix_rows,
    rms_norm,
    rotary,
    rotary_split,
    seed_attention,
    sum_kron,
    window_attention,
)
from kunlun.ops.dispatch import OPERATORS
from tests.ops.helpers import gradients, needs_native, normal, offsets_of

pytestmark = [
    needs_native,  # the same compiler
    pytest.mark.xdist_group("inductor"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torch about torch
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

HEADS, WIDTH, KEYS, SEEDS = 2, 8, 3, 4
LENGTHS = [(5, 0, 7), (4,), (0,), (1, 1, 30, 0)]
DYNAMIC = 7  # of the inputs: their first axis follows the batch
CONSTANT = (4, 5, 6)  # inputs without gradient: offsets and times
REGISTERED = {"layer_norm": "row_norm", "rms_norm": "row_norm"}  # under a name of both
TRACED = set(OPERATORS) - {"row_wise_adagrad"}  # an optimizer's step is no part of a model


class Operators(nn.Module):
    def forward(
        self,
        x: Tensor,
        angle: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor,
        kv_offsets: Tensor,
        time: Tensor,
        seeds: Tensor,
        z: Tensor,
        w: Tensor,
        position_bias: Tensor,
        time_bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = rotary(x, angle)
        u = layer_norm(x)
        x = add_rms_norm(x, u, gdpa(u, k, v, offsets, kv_offsets))
        q, same = rotary_split(torch.stack([x, x], 1), angle, turned=1)
        x = x + window_attention(q, same, same, offsets, window=3)
        x = x + hstu_attention(x, x, x, offsets, time, position_bias, time_bias)
        x = gelu_approx(rms_norm(x))
        pooled = seed_attention(seeds, x, x, offsets).flatten(2)
        return x, sum_kron(pooled, z, w), mix_rows(pooled, z[0])


def inputs(lengths: Sequence[int]) -> tuple[Tensor, ...]:
    n, rows = len(lengths), sum(lengths)
    return (
        normal(rows, HEADS, WIDTH),
        normal(rows, WIDTH // 2, seed=1),
        normal(n * KEYS, HEADS, WIDTH, seed=2),
        normal(n * KEYS, HEADS, WIDTH, seed=3),
        offsets_of(lengths),
        torch.arange(n + 1) * KEYS,
        torch.arange(rows).float() * 100,
        normal(SEEDS, HEADS, WIDTH, seed=4),
        normal(2, SEEDS, 3, seed=5),
        normal(2, HEADS * WIDTH, 5, seed=6),
        normal(4, seed=7),
        normal(8, seed=8),
    )


def flat(model: nn.Module, arguments: Sequence[Tensor], *leaves: Tensor) -> Tensor:
    """All results as one vector, the leaves in place of the arguments with gradients."""
    left = iter(leaves)
    filled = [x if place in CONSTANT else next(left) for place, x in enumerate(arguments)]
    return torch.cat([out.flatten() for out in model(*filled)])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_package_made_ahead_of_time_takes_any_batch(tmp_path: Path) -> None:
    dynamic = {0: torch.export.Dim.DYNAMIC}
    given = inputs((5, 0, 7))
    shapes = [dynamic if place < DYNAMIC else None for place in range(len(given))]
    program = torch.export.export(Operators(), given, dynamic_shapes=tuple(shapes))
    held = {str(node.target) for node in program.graph.nodes}
    assert {f"kunlun.{REGISTERED.get(name, name)}.default" for name in TRACED} <= held
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
        arguments = inputs(lengths)
        leaves = [x for place, x in enumerate(arguments) if place not in CONSTANT]
        got = gradients(partial(flat, compiled, arguments), leaves)
        want = gradients(partial(flat, module, arguments), leaves)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, at=lengths: f"{at}: {text}")
