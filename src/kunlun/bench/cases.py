"""One operator at one shape: inputs, the float64 truth, what it costs, and every way to run it.

Legend: n samples, L packed rows, H heads, D width, K rows a sample that gdpa reads, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.bench import plain
from kunlun.bench.backends import forced
from kunlun.bench.shapes import Shape, lengths_of
from kunlun.errors import BackendError
from kunlun.ops import (
    add_rms_norm,
    flops,
    gdpa,
    gelu_approx,
    hstu_attention,
    layer_norm,
    rotary,
    seed_attention,
    sum_kron,
    window_attention,
)
from kunlun.ops.gdpa.reference import gdpa_reference
from kunlun.ops.hstu_attention.reference import hstu_attention_reference
from kunlun.ops.norms.reference import add_rms_norm_reference, layer_norm_reference
from kunlun.ops.rotary.reference import rotary_reference
from kunlun.ops.seed_attention.reference import seed_attention_reference
from kunlun.ops.sum_kron.reference import sum_kron_reference
from kunlun.ops.window_attention.reference import window_attention_reference

OPERATORS = (
    *("gdpa", "window_attention", "seed_attention", "hstu_attention", "sum_kron", "rotary"),
    *("layer_norm", "add_rms_norm", "gelu_approx"),
)
OURS = ("native", "portable", "triton")
WAYS = (*OURS, "padded", "sdpa", "flex", "flash_attn")
SCALE = 0.1  # of gdpa's scores: about unit size at width 64
POSITIONS, TIMES = 128, 64  # of hstu_attention: buckets of its biases
MONTH = 2.6e6  # seconds that its rows are spread over
TERMS, FEWER = 8, 8  # of sum_kron: terms, and seeds per token
MOST_SCORES = 2 * 2**30  # bytes; autograd keeps several tensors of this size
WHOLE: dict[str, tuple[Callable[..., Tensor], int]] = {  # truth in one piece, and its inputs
    "sum_kron": (sum_kron_reference, 3),
    "rotary": (rotary_reference, 2),
    "layer_norm": (layer_norm_reference, 1),
    "add_rms_norm": (add_rms_norm_reference, 3),
    "gelu_approx": (partial(F.gelu, approximate="tanh"), 1),
}

Piece = tuple[tuple[tuple[slice, ...], ...], tuple[slice, ...]]


class Cost(NamedTuple):
    """Of a forward, and of a forward with its backward: useful FLOPs, and bytes that must move."""

    flops: tuple[float, float]
    bytes: tuple[float, float]


class Way(NamedTuple):
    """A function of the case's inputs, or why it is not run; `backward` False: forward only."""

    run: Callable[..., Tensor] | None
    skipped: str = ""
    backward: bool = True


@dataclass(frozen=True)
class Case:
    """inputs and outer (the gradient of the result) hold values that bfloat16 can express, so that
    one truth serves every dtype."""

    operator: str
    shape: Shape
    lengths: list[int]
    device: torch.device
    inputs: list[Tensor]  # float32
    outer: Tensor
    truth: tuple[Tensor, list[Tensor]] | None  # float64 result and gradients

    def ways(self, dtype: torch.dtype, names: Sequence[str] = WAYS) -> dict[str, Way]:
        """Every way by name: a function, or why there is none."""
        made = {}
        for name in names:
            try:
                made[name] = self._way(name, dtype)
            except (BackendError, ImportError, _Cannot) as error:
                made[name] = Way(None, str(error))
        return made

    def _way(self, name: str, dtype: torch.dtype) -> Way:
        if name in OURS:
            operator, rest, settings = self._call()
            ours = forced(operator, name, self.device, dtype)
            return Way(lambda *inputs: ours(*inputs, *rest, **settings))
        if name == "padded":
            return Way(self._padded())
        if self.operator in ("gdpa", "hstu_attention"):
            raise _Cannot(f"always has a softmax, and {self.operator} has none")
        if self.operator not in ("window_attention", "seed_attention"):
            raise _Cannot("is attention, and this is not")
        padding = plain.Padding(self.lengths, self.device)
        windowed = self.operator == "window_attention"
        if name == "sdpa":
            attention = F.scaled_dot_product_attention
            if windowed:
                return Way(plain.window(padding, self.shape.window, attention))
            return Way(plain.seeds(padding, attention))
        if name == "flex":
            # torch refuses gradients of FlexAttention on CPU
            return Way(self._flex, backward=self.device.type == "cuda")
        if self.device.type != "cuda":
            raise _Cannot(f"needs CUDA and the device is {self.device.type}")
        if not windowed:
            raise _Cannot("has no queries that samples share")
        return Way(plain.flash(padding, window=self.shape.window))

    @cached_property
    def _flex(self) -> plain.Run:
        """Its block mask takes seconds, and serves every dtype."""
        padding = plain.Padding(self.lengths, self.device)
        if self.operator == "window_attention":
            return plain.flex_window(padding, self.shape.window)
        return plain.flex_seeds(padding, self.shape.seeds)

    def default(self) -> Callable[..., Tensor]:
        """The operator as the model calls it."""
        operator, rest, settings = self._call()
        return lambda *inputs: operator(*inputs, *rest, **settings)

    def _call(self) -> tuple[Callable[..., Tensor], list[Tensor], dict[str, float]]:
        """The operator, and what follows the inputs that have gradients."""
        offsets = _offsets(self.lengths).to(self.device)
        if self.operator == "gdpa":
            keys = torch.arange(len(offsets), device=self.device) * self.shape.keys
            return gdpa, [offsets, keys], {"scale": SCALE}
        if self.operator == "window_attention":
            return window_attention, [offsets], {"window": self.shape.window}
        if self.operator == "seed_attention":
            return seed_attention, [offsets], {}
        if self.operator == "hstu_attention":
            time = _seconds(self.lengths).to(self.device)
            return _with_time(hstu_attention, offsets, time), [], _hstu_settings(self.shape)
        others: dict[str, Callable[..., Tensor]] = {
            **{"sum_kron": sum_kron, "rotary": rotary, "layer_norm": layer_norm},
            **{"add_rms_norm": add_rms_norm, "gelu_approx": gelu_approx},
        }
        return others[self.operator], [], {}

    def _padded(self) -> plain.Run:
        padding, shape = plain.Padding(self.lengths, self.device), self.shape
        if self.operator in ("window_attention", "hstu_attention"):
            size = 4.0 * padding.n * shape.heads * padding.longest**2
            if size > MOST_SCORES:
                raise _Cannot(
                    f"its scores are {size / 2**30:.1f} GiB, more than the "
                    f"{MOST_SCORES / 2**30:.0f} GiB it is given"
                )
            if self.operator == "hstu_attention":
                return plain.hstu(padding, _seconds(self.lengths).to(self.device), shape.longest)
            return plain.window(padding, shape.window, plain.attend)
        if self.operator == "gdpa":
            return plain.gdpa(padding, SCALE)
        if self.operator == "seed_attention":
            return plain.seeds(padding, plain.attend)
        if self.operator == "rotary":
            return plain.rotary(padding)
        return plain.UNPADDED[self.operator]

    def cost(self, dtype: torch.dtype) -> Cost:
        """From the formulas beside the operators; the least bytes are those of inputs, results and
        gradients, each read or written once."""
        element, extra, forward = dtype.itemsize, 0.0, 0  # element-wise work counts nothing
        x = [float(i.numel()) * element for i in self.inputs]
        out = float(self.outer.numel()) * element
        shape, total = self.shape, sum(self.lengths)
        h, d = shape.heads, shape.dim
        if self.operator == "gdpa":
            forward = flops.gdpa_flops(total * shape.keys, h, d)
        elif self.operator == "window_attention":
            pairs = sum(flops.window_pairs(length, shape.window) for length in self.lengths)
            forward = flops.window_attention_flops(pairs, h, d)
            extra = out + 4.0 * total * h  # the backward reads the result and its sums
        elif self.operator == "hstu_attention":
            pairs = sum(flops.window_pairs(t, t, causal=True) for t in self.lengths)
            forward = flops.gdpa_flops(pairs, h, d)
            x[3:] = [4.0 * i.numel() for i in self.inputs[3:]]  # tables stay float32
        elif self.operator == "seed_attention":
            forward = flops.seed_attention_flops(total, shape.seeds, h, d)
            extra = out + 4.0 * len(self.lengths) * shape.seeds * h
        elif self.operator == "sum_kron":
            (n, s, wide), (k, _, t) = self.inputs[0].shape, self.inputs[1].shape
            forward = flops.sum_kron_flops(n, s, t, k, wide, self.inputs[2].shape[2])
        elif self.operator == "rotary":
            x[1] = 4.0 * self.inputs[1].numel()  # angles stay float32
        elif self.operator == "add_rms_norm":
            # s is not read again, its gradient is the result's, and that of u serves y
            extra = -3 * out
        back = 2.0 if self.operator == "sum_kron" else flops.BACKWARD
        once = sum(x) + out
        return Cost((float(forward), (1 + back) * forward), (once, once + 2 * sum(x) + out + extra))

    def cast(self, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        """(inputs, gradient of the result) in a dtype; rotary's angles and the tables of
        hstu_attention stay float32."""
        keep = {"rotary": 1, "hstu_attention": 3}.get(self.operator, len(self.inputs))
        inputs = [x.to(dtype) for x in self.inputs[:keep]] + self.inputs[keep:]
        return inputs, self.outer.to(dtype)


class _Cannot(Exception):
    """Why a way cannot express or hold a case."""


def make(operator: str, shape: Shape, device: torch.device, *, truth: bool = True) -> Case:
    """Random inputs and their truth, which takes some ten seconds for long sequences."""
    lengths = lengths_of(shape)
    n, total, h, d = shape.samples, sum(lengths), shape.heads, shape.dim
    generator = torch.Generator().manual_seed(1)

    def rows(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).bfloat16().float()

    if operator == "gdpa":
        inputs = [rows(total, h, d), rows(n * shape.keys, h, d), rows(n * shape.keys, h, d)]
        result: tuple[int, ...] = (total, h, d)
    elif operator == "window_attention":
        inputs = [rows(total, h, d) for _ in range(3)]
        result = (total, h, d)
    elif operator == "hstu_attention":
        inputs = [*(rows(total, h, d) for _ in range(3)), rows(POSITIONS), rows(TIMES)]
        result = (total, h, d)
    elif operator == "seed_attention":
        inputs = [rows(shape.seeds, h, d), rows(total, h, d), rows(total, h, d)]
        result = (n, shape.seeds, h, d)
    elif operator == "sum_kron":
        tokens, wide = max(1, shape.seeds // FEWER), h * d
        inputs = [
            rows(n, shape.seeds, wide),
            rows(TERMS, shape.seeds, tokens) / 8,
            rows(TERMS, wide, wide) / 8,
        ]
        result = (n, tokens, wide)
    elif operator == "rotary":
        inputs, result = [rows(total, h, d), rows(total, d // 2)], (total, h, d)
    else:
        result = (total, h * d)
        inputs = [rows(*result) for _ in range(WHOLE[operator][1])]
    outer = rows(*result)
    wanted = _truth(operator, shape, lengths, inputs, outer) if truth else None
    placed = [x.to(device) for x in inputs]
    return Case(operator, shape, lengths, device, placed, outer.to(device), wanted)


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _seconds(lengths: list[int]) -> Tensor:
    """When every row happened, in no order; always the same."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(sum(lengths), generator=generator, dtype=torch.float64) * MONTH


def _hstu_settings(shape: Shape) -> dict[str, float]:
    return {"out_scale": 1 / shape.longest}


def _with_time(
    operator: Callable[..., Tensor], offsets: Tensor, time: Tensor
) -> Callable[..., Tensor]:
    """hstu_attention of what has gradients: q, k, v and the two tables."""

    @wraps(operator)
    def run(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor, **settings: Any) -> Tensor:
        return operator(q, k, v, offsets, time, *tables, **settings)

    return run


def _truth(
    operator: str, shape: Shape, lengths: list[int], inputs: list[Tensor], outer: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Result and gradients in float64 from the operators' references, piece by piece: a whole
    batch's scores would not fit."""
    out = torch.zeros(outer.shape, dtype=torch.float64)
    grads = [torch.zeros(x.shape, dtype=torch.float64) for x in inputs]
    for places, place in _pieces(operator, shape, lengths):
        leaves = [x[i].double().requires_grad_() for x, i in zip(inputs, places, strict=True)]
        result = _formula(operator, shape, lengths, places[0][0], leaves)(*leaves)
        out[place] = result.detach()
        for grad, i, part in zip(
            grads, places, torch.autograd.grad(result, leaves, outer[place].double()), strict=True
        ):
            grad[i] += part
    return out, grads


def _pieces(operator: str, shape: Shape, lengths: list[int]) -> Iterator[Piece]:
    """Where a part of the work reads each input and writes the result."""
    every = slice(None)
    if operator in WHOLE:
        yield ((every,),) * WHOLE[operator][1], (every,)
        return
    bounds = _offsets(lengths).tolist()
    for b, h in ((b, h) for b in range(len(lengths)) for h in range(shape.heads)):
        head = slice(h, h + 1)
        rows = (slice(bounds[b], bounds[b + 1]), head)
        keys = (slice(b * shape.keys, (b + 1) * shape.keys), head)
        if operator == "gdpa":
            yield (rows, keys, keys), rows
        elif operator == "window_attention":
            yield (rows, rows, rows), rows
        elif operator == "hstu_attention":
            yield (rows, rows, rows, (every,), (every,)), rows
        else:
            yield ((every, head), rows, rows), (slice(b, b + 1), every, head)


def _formula(
    operator: str, shape: Shape, lengths: list[int], rows: slice, piece: list[Tensor]
) -> Callable[..., Tensor]:
    """rows: those of the first input that are in the piece."""
    if operator in WHOLE:
        return WHOLE[operator][0]
    first, second = (torch.tensor([0, len(x)]) for x in piece[:2])
    if operator == "gdpa":
        return partial(gdpa_reference, q_offsets=first, kv_offsets=second, scale=SCALE)
    if operator == "window_attention":
        return partial(window_attention_reference, offsets=first, window=shape.window)
    if operator == "hstu_attention":
        reference = _with_time(hstu_attention_reference, first, _seconds(lengths)[rows])
        return partial(reference, **_hstu_settings(shape))
    return partial(seed_attention_reference, offsets=second)
