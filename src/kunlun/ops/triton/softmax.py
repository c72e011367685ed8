"""Device functions of the two softmax operators; weights are powers of 2, see kunlun.ops.softmax.

Products accumulate in float32. Float32 inputs are multiplied exactly, without tensor cores: three
TF32 products in their place spill registers at 128 channels.

A program takes one item of a work list and returns, so that the GPU deals out what is left; a loop
over items costs registers here, for addresses that the compiler moves out of it.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from kunlun.ops import softmax
from kunlun.ops.triton.tiles import width_of

# Where a running maximum starts, too: keys that are banned before a row has met another one weigh
# 1, until the first real score shrinks their sum to 0 exactly. Every row of a sample meets one.
# That holds for scores that stay well above it: below -1e30 they lose against banned ones.
BANNED = tl.constexpr(softmax.BANNED)


class Tile(NamedTuple):
    """Tile sizes and launch settings of one kernel."""

    rows: int  # queries
    keys: int
    warps: int
    stages: int  # of the software pipeline

    def constants(self, channels: int) -> dict[str, int]:
        """Compile-time arguments of the kernels."""
        width = width_of(channels)
        return {"BM": self.rows, "BN": self.keys, "D": channels, "WIDTH": width}

    def settings(self) -> dict[str, int]:
        """Launch settings. Fused multiply-adds are asked for: Triton's default changes in 3.10."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


@triton.jit
def take(items, item, heads):
    """(sample, first row, head) of an item; heads of one tile are neighbours."""
    pair = items + 1 + 2 * (item // heads)
    return tl.load(pair), tl.load(pair + 1), (item % heads).to(tl.int64)


@triton.jit
def products(a, b):
    """a b^T, [rows of a, rows of b]."""
    if a.dtype == tl.float32:
        # The compiler keeps a left operand that a loop does not change in registers, transposed
        # or not: 2 * D of them a thread, which spill. It leaves a right one in shared memory.
        x = tl.trans(tl.dot(b, tl.trans(a), input_precision="ieee"))
    else:
        x = tl.dot(a, tl.trans(b))
    return x


@triton.jit
def add_product(a, b, total):
    """total + a b, with a rounded to the dtype of b."""
    return tl.dot(a.to(b.dtype), b, total, input_precision="ieee")


@triton.jit
def read(scores, values, top, total, result):
    """A step of the running softmax of [rows, keys] scores, already scaled for base 2.

    top [rows]: maximum so far; total [rows]: sum of the weights; result [rows, D] unnormalised.
    """
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    result = add_product(weights, values, result * shrink[:, None])
    return higher, total, result


@triton.jit
def finish(top, total, result):
    """(normalised result, log2-sum-exp2); zeros for rows that have read nothing."""
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    lse = tl.where(nothing, 0.0, top + tl.log2(total))
    return result / total[:, None], lse
