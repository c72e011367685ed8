"""The shapes the operators are measured at."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Shape(NamedTuple):
    """Samples, mean and longest length, heads, head width, rows that gdpa reads, seeds, window."""

    samples: int
    mean: int
    longest: int
    heads: int
    dim: int
    keys: int
    seeds: int
    window: int


SHAPES = {  # A to D: from short histories with narrow heads to long ones; training: the presets'
    "A": Shape(256, 66, 200, 4, 32, 32, 32, 64),
    "B": Shape(64, 310, 1024, 4, 64, 64, 64, 64),
    "C": Shape(16, 1484, 4096, 8, 64, 128, 64, 64),
    "D": Shape(64, 310, 1024, 4, 128, 64, 64, 64),
    "train-8": Shape(512, 25, 50, 2, 8, 16, 12, 8),
    "train-16": Shape(512, 25, 50, 4, 16, 32, 16, 16),
    "train-32": Shape(1024, 40, 50, 4, 32, 64, 32, 32),
}
DEFAULT = ("A", "B", "C", "D")
SWEEP = (256, 512, 1024, 2048, 4096)  # rows of every sequence, at a fixed number of sequences


def swept(length: int) -> Shape:
    """Four sequences of `length` rows each."""
    return Shape(4, length, length, 4, 64, 64, 64, 64)


def lengths_of(shape: Shape) -> list[int]:
    """Log-normal around the mean, cut at the longest; short ones (up to 64) uniform around it."""
    if shape.mean == shape.longest:
        return [shape.mean] * shape.samples
    generator = torch.Generator().manual_seed(0)
    if shape.longest <= 64:
        least = 2 * shape.mean - shape.longest
        drawn = torch.randint(least, shape.longest + 1, (shape.samples,), generator=generator)
        return [int(n) for n in drawn]
    return log_normal(shape.samples, shape.mean, shape.longest, generator)


def log_normal(count: int, mean: float, longest: int, generator: torch.Generator) -> list[int]:
    """`count` lengths from 1 to `longest` whose mean is about `mean`; sigma of the logarithm 1."""
    raw = torch.exp(torch.randn(count, generator=generator))
    for _ in range(20):  # cutting lowers the mean
        raw = raw * (mean / raw.clamp(max=longest).mean())
    return [int(n) for n in raw.clamp(1, longest).round()]
