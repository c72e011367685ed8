"""Native against portable against padded operators on CPU, forward and with backward.

    OMP_NUM_THREADS=1 python benchmarks/ops_cpu.py [--only gdpa window seeds] [--shapes A B ...]
                                                   [--dtype float32 bfloat16] [--out FILE]

Times are CPU times of this process, the least of several runs. Shares are useful FLOPs (no
padding, nothing outside a band) over the rate of a large matrix product in the same process and
dtype. Every backend is compared with the padded result before it is timed. "padded" is what one
writes without these operators: rows padded to the batch's longest, eager torch, autograd.
Outputs are fresh tensors from torch's allocator, as in training.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.ops import Jagged, flops, gdpa, native, seed_attention, window_attention


class Shape(NamedTuple):
    """Samples, mean and longest length, heads, width, keys of gdpa, seeds, window."""

    samples: int
    mean: int
    longest: int
    heads: int
    dim: int
    keys: int
    seeds: int
    window: int


SHAPES = {
    "A": Shape(256, 66, 200, 4, 32, 32, 32, 64),
    "B": Shape(64, 310, 1024, 4, 64, 64, 64, 64),
    "C": Shape(16, 1484, 4096, 8, 64, 128, 64, 64),
    "D": Shape(64, 310, 1024, 4, 128, 64, 64, 64),
    "train-8": Shape(512, 25, 50, 2, 8, 16, 12, 8),
    "train-16": Shape(512, 25, 50, 4, 16, 32, 16, 16),
    "train-32": Shape(1024, 40, 50, 4, 32, 64, 32, 32),
    "train-32-few-keys": Shape(512, 25, 50, 2, 32, 16, 12, 8),
}
Run = Callable[..., Tensor]


def lengths_of(shape: Shape) -> list[int]:
    """Log-normal with the mean asked for; short histories uniform and up to the longest."""
    generator = torch.Generator().manual_seed(0)
    if shape.longest <= 64:
        least = 2 * shape.mean - shape.longest
        return torch.randint(
            least, shape.longest + 1, (shape.samples,), generator=generator
        ).tolist()
    raw = torch.exp(torch.randn(shape.samples, generator=generator))
    for _ in range(20):
        raw = raw * (shape.mean / raw.clamp(max=shape.longest).mean())
    return raw.clamp(1, shape.longest).round().long().tolist()


def least_time(run: Callable[[], Any], budget: float) -> float:
    """CPU seconds of the fastest of 3 to 50 runs within about `budget` seconds."""
    run()
    best, spent, count = float("inf"), 0.0, 0
    while count < 3 or (spent < budget and count < 50):
        start = time.process_time()
        run()
        taken = time.process_time() - start
        best, spent, count = min(best, taken), spent + taken, count + 1
    return best


def cases(shape: Shape, lengths: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """Operator -> (run of a backend, padded run, inputs, useful forward FLOPs)."""
    total, n = sum(lengths), shape.samples
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    kv_offsets = torch.arange(n + 1) * shape.keys
    present = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    def rows(count: int) -> Tensor:
        return torch.randn(count, shape.heads, shape.dim).to(dtype)

    def padded(x: Tensor) -> Tensor:  # [L, H, D] -> [n, H, T, D]
        return Jagged(x, offsets, max(lengths)).to_padded().transpose(1, 2)

    def dense(x: Tensor) -> Tensor:  # [n * K, H, D] -> [n, H, K, D]
        return x.view(n, -1, shape.heads, shape.dim).transpose(1, 2)

    def back(x: Tensor) -> Tensor:  # [n, H, T, D] -> [L, H, D]
        return x.transpose(1, 2)[present]

    def padded_gdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = padded(q) @ dense(k).mT * 0.1
        return back(F.gelu(scores, approximate="tanh") @ dense(v))

    def padded_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(max(lengths))
        near = (place[:, None] - place).abs() <= shape.window
        mask = near & present[:, None, None, :]
        mask = mask | ~present[:, None, :, None]  # padded rows read something, and are dropped
        return back(F.scaled_dot_product_attention(padded(q), padded(k), padded(v), mask))

    def padded_seeds(seeds: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = seeds.transpose(0, 1).expand(n, -1, -1, -1)
        mask = present[:, None, None, :] | ~present.any(1)[:, None, None, None]
        out = F.scaled_dot_product_attention(queries, padded(k), padded(v), mask)
        return (out * present.any(1)[:, None, None, None]).transpose(1, 2)

    h, d = shape.heads, shape.dim
    banded = sum(flops.window_pairs(length, shape.window) for length in lengths)
    return {
        "gdpa": (
            lambda backend: (
                lambda q, k, v: gdpa(q, k, v, offsets, kv_offsets, scale=0.1, backend=backend)
            ),
            padded_gdpa,
            [rows(total), rows(n * shape.keys), rows(n * shape.keys)],
            flops.gdpa_flops(total * shape.keys, h, d),
        ),
        "window": (
            lambda backend: (
                lambda q, k, v: window_attention(
                    q, k, v, offsets, window=shape.window, backend=backend
                )
            ),
            padded_window,
            [rows(total), rows(total), rows(total)],
            flops.window_attention_flops(banded, h, d),
        ),
        "seeds": (
            lambda backend: lambda s, k, v: seed_attention(s, k, v, offsets, backend=backend),
            padded_seeds,
            [rows(shape.seeds), rows(total), rows(total)],
            flops.seed_attention_flops(total, shape.seeds, h, d),
        ),
    }


def measure(run: Run, inputs: list[Tensor], budget: float) -> tuple[float, float]:
    """Seconds of a forward, and of a forward with its backward."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outer = torch.randn_like(run(*inputs))

    def both() -> None:
        torch.autograd.grad(run(*leaves), leaves, outer)

    return least_time(lambda: run(*inputs), budget), least_time(both, budget)


def compare(shape: Shape, only: list[str], dtype: torch.dtype, budget: float) -> list[dict]:
    """One line an operator."""
    lengths = lengths_of(shape)
    side = torch.randn(1536, 1536).to(dtype)
    found = []
    for name, (of, padded, inputs, useful) in cases(shape, lengths, dtype).items():
        if name not in only:
            continue
        peak = 2 * len(side) ** 3 / least_time(lambda: side @ side, budget)
        line: dict[str, Any] = {"operator": name, "dtype": str(dtype)[6:], **shape._asdict()}
        line |= {"rows": sum(lengths), "gemm_gflops": round(peak / 1e9)}
        want = padded(*inputs).float()
        for label in ("native", "portable", "padded"):
            run = padded if label == "padded" else of(label)
            error = float((run(*inputs).float() - want).abs().max() / want.abs().max())
            if error > (1e-4 if dtype == torch.float32 else 3e-2):
                raise SystemExit(f"{name}, {label}: off by {error:.1e}; nothing is timed")
            forward, both = measure(run, inputs, budget)
            line[label] = {
                "forward_ms": round(forward * 1e3, 3),
                "both_ms": round(both * 1e3, 3),
                "forward_share": round(useful / forward / peak, 3),
                "both_share": round((1 + flops.BACKWARD) * useful / both / peak, 3),
            }
        for label in ("portable", "padded"):
            ratios = [line[label][k] / line["native"][k] for k in ("forward_ms", "both_ms")]
            line[f"{label}_over_native"] = [round(r, 2) for r in ratios]
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["gdpa", "window", "seeds"])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtype", nargs="*", default=["float32"])
    parser.add_argument("--budget", type=float, default=0.3, help="seconds a timing may take")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    report = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "native": native.load().reason,
        "load": round(os.getloadavg()[0], 1),  # of the last minute, other programs included
        "runs": [],
    }
    for dtype in args.dtype:
        for name in args.shapes:
            for line in compare(SHAPES[name], args.only, getattr(torch, dtype), args.budget):
                report["runs"].append({"shape": name, **line})
                ours = line["native"]
                print(
                    f"{name:18} {line['operator']:7} {dtype:9}"
                    f" share {ours['forward_share']:.2f} {ours['both_share']:.2f}"
                    f"  portable x{line['portable_over_native']}"
                    f"  padded x{line['padded_over_native']}",
                    flush=True,
                )
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
