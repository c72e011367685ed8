"""What a call of an operator costs beyond its work: ours beside torch.library.custom_op.

    OMP_NUM_THREADS=1 python benchmarks/operator_calls.py [--out FILE]

One body (rms_norm of 8 rows of 32 channels, and its backward) is registered both as
`kunlun.ops.registration` and as torch does it, and called under no_grad and with a gradient.
Processor time of this process, least of 40 rounds in turns: others on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kunlun.bench.clock import interleaved, stopwatch
from kunlun.ops.native import rows
from kunlun.ops.norms.portable import EPS
from kunlun.ops.registration import Saved, operator, register_autograd
from kunlun.training import environment

CALLS, ROUNDS = 200, 40


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """The body."""
    return rows.norm_forward(x, False, EPS, x.dtype)


def backward(grad: Tensor, out: Tensor, rstd: Tensor) -> Tensor:
    """The body of its gradient."""
    return rows.norm_backward(grad, out, rstd, False, out.dtype)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """For both."""
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])


@operator
def call_bench_op(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ours."""
    return forward(x)


@operator
def call_bench_backward_op(grad: Tensor, out: Tensor, rstd: Tensor) -> Tensor:
    """Ours."""
    return backward(grad, out, rstd)


def differentiate(ctx: Any, saved: Saved, grad: Tensor, _: Tensor) -> tuple[Tensor]:
    """Ours."""
    return (call_bench_backward_op(grad, *saved),)


register_autograd(call_bench_op, differentiate, save=save)


@torch.library.custom_op("kunlun_bench::norm", mutates_args=())
def custom(x: Tensor) -> tuple[Tensor, Tensor]:
    """torch's."""
    return forward(x)


@torch.library.custom_op("kunlun_bench::norm_backward", mutates_args=())
def custom_backward(grad: Tensor, out: Tensor, rstd: Tensor) -> Tensor:
    """torch's."""
    return backward(grad, out, rstd)


custom.register_autograd(
    lambda ctx, grad, _: custom_backward(grad, *ctx.saved_tensors), setup_context=save
)


def main() -> None:
    """Measure, print, and write JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    x, grad = torch.randn(8, 32), torch.ones(8, 32)
    leaf = x.clone().requires_grad_()

    def many(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                call()

        return run

    ways: dict[str, Callable[[Tensor], Any]] = {"custom_op": custom, "kunlun": call_bench_op}
    runs = {("body", "forward"): many(lambda: forward(x))}
    for name, op in ways.items():
        runs[name, "forward"] = torch.no_grad()(many(lambda op=op: op(x)))
        runs[name, "forward and backward"] = many(
            lambda op=op: torch.autograd.grad(op(leaf)[0], leaf, grad)
        )
    for run in runs.values():
        run()
    kind, clock = stopwatch(torch.device("cpu"))
    found = interleaved(runs, clock, budget=1e9, most=ROUNDS)
    micros = {f"{way}: {what}": t.least / CALLS * 1e6 for (way, what), t in found.items()}
    for name, value in micros.items():
        print(f"{name:32} {value:7.1f} us a call ({kind} time)")
    if out is not None:
        about = environment.describe(torch.device("cpu"))
        out.write_text(json.dumps({"clock": kind, "micros": micros, "machine": about}, indent=1))


if __name__ == "__main__":
    main()
