"""What one writes without our operators: padded to the longest, or through torch's attentions.

Each function takes the packed inputs of an operator and returns its packed result; padding and
packing are part of it, since the model needs both. Legend: n samples, T the longest of them,
L packed rows, H heads, D width, K rows a sample that gdpa reads, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.ops.time_buckets import time_buckets

Run = Callable[..., Tensor]


class Padding:
    """Between packed [L, ...] and padded [n, T, ...]; indices are made once, as a loader would."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.n, self.longest = len(lengths), max(lengths)
        self.lengths = torch.tensor(lengths, device=device)
        self.present = torch.arange(self.longest, device=device) < self.lengths[:, None]  # [n, T]
        self.sample = torch.repeat_interleave(
            torch.arange(self.n, device=device), self.lengths
        )  # [L]
        self.rows = self.present.flatten().nonzero().flatten()  # [L], into [n * T]

    def pad(self, x: Tensor) -> Tensor:
        """[L, ...] -> [n, T, ...], zeros behind each sample."""
        flat = x.new_zeros(self.n * self.longest, *x.shape[1:]).index_copy(0, self.rows, x)
        return flat.view(self.n, self.longest, *x.shape[1:])

    def pack(self, x: Tensor) -> Tensor:
        """[n, T, ...] -> [L, ...]."""
        return x.flatten(0, 1).index_select(0, self.rows)

    def heads(self, x: Tensor) -> Tensor:
        """[L, H, D] -> [n, H, T, D]."""
        return self.pad(x).transpose(1, 2)

    def from_heads(self, x: Tensor) -> Tensor:
        """[n, H, T, D] -> [L, H, D]."""
        return self.pack(x.transpose(1, 2))

    def band(self, window: int) -> Tensor:
        """bool [n, 1, T, T]: who may read whom; rows of padding read anything, and are dropped."""
        place = torch.arange(self.longest, device=self.present.device)
        near = (place[:, None] - place).abs() <= window
        keys, rows = self.present[:, None, None, :], self.present[:, None, :, None]
        return (near & keys) | ~rows

    def keys(self) -> Tensor:
        """bool [n, 1, 1, T]: the rows there are; all of an empty sample's, or softmax is NaN."""
        empty = (self.lengths == 0)[:, None]
        return (self.present | empty)[:, None, None, :]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention as three eager operations; [n, H, T, D] each, mask as for SDPA."""
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return torch.matmul(scores.softmax(-1), v)


def gdpa(padding: Padding, scale: float) -> Run:
    """gdpa as matmul, tanh-GELU, matmul."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (x.unflatten(0, (padding.n, -1)).transpose(1, 2) for x in (k, v))
        scores = padding.heads(q) @ keys.mT * scale
        return padding.from_heads(F.gelu(scores, approximate="tanh") @ values)

    return run


def hstu(padding: Padding, time: Tensor, longest: int) -> Run:
    """HSTU's attention as matmul, biases, SiLU, mask, matmul; time [L] seconds."""
    place = torch.arange(padding.longest, device=time.device)
    later = place[:, None] < place
    moments = padding.pad(time)
    between = time_buckets((moments[:, :, None] - moments[:, None]).abs(), 2**30)[:, None]
    apart = (place[:, None] - place).clamp(min=0)

    def run(q: Tensor, k: Tensor, v: Tensor, by_position: Tensor, by_time: Tensor) -> Tensor:
        queries, keys, values = map(padding.heads, (q, k, v))
        near = by_position[apart.clamp(max=len(by_position) - 1)]
        rab = near + by_time[between.clamp(max=len(by_time) - 1)]
        scores = queries @ keys.mT * q.shape[-1] ** -0.5 + rab.to(q.dtype)
        weights = F.silu(scores).masked_fill(later, 0) / longest
        return padding.from_heads(weights @ values)

    return run


def window(padding: Padding, width: int, attention: Run) -> Run:
    """Window attention under a mask [n, 1, T, T]."""
    mask = padding.band(width)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return padding.from_heads(attention(*map(padding.heads, (q, k, v)), mask))

    return run


def seeds(padding: Padding, attention: Run) -> Run:
    """Seed attention: the same queries for every sample, under a mask [n, 1, 1, T]."""
    mask = padding.keys()
    some = (padding.lengths > 0)[:, None, None, None]

    def run(queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = queries.transpose(0, 1).expand(padding.n, -1, -1, -1)
        out = attention(q, padding.heads(k), padding.heads(v), mask)
        return (out * some).transpose(1, 2)

    return run


def sum_kron(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The sum as it is written: all terms [n, k, T, D2], then added up."""
    return (z.mT @ x[:, None] @ w).sum(1)


def layer_norm(x: Tensor) -> Tensor:
    """Rows need no padding here and in the next two."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def add_rms_norm(s: Tensor, u: Tensor, y: Tensor) -> Tensor:
    """The sum of three as it is written."""
    return s + F.rms_norm(u + y, s.shape[-1:], eps=1e-5)


def gelu_approx(x: Tensor) -> Tensor:
    """torch's own."""
    return F.gelu(x, approximate="tanh")


UNPADDED: dict[str, Run] = {
    "sum_kron": sum_kron,
    "layer_norm": layer_norm,
    "add_rms_norm": add_rms_norm,
    "gelu_approx": gelu_approx,
}


def rotary(padding: Padding) -> Run:
    """Rotation of pairs by sine and cosine over padded rows."""

    def run(x: Tensor, angle: Tensor) -> Tensor:
        even, odd = padding.pad(x.float()).unflatten(-1, (-1, 2)).unbind(-1)
        turn = padding.pad(angle)[:, :, None]
        cos, sin = turn.cos(), turn.sin()
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
        return padding.pack(turned.flatten(-2)).to(x.dtype)

    return run


def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Dynamo gives up on a function after 8 shapes and then runs it unfused, with a warning only.
    torch.compiler.reset()
    return torch.compile(flex_attention, dynamic=False)


def flex_window(padding: Padding, width: int) -> Run:
    """FlexAttention over the packed rows as one sequence, other samples masked out block by block.

    The block mask is made here, not in the timed function. Compiled at the first call.
    """
    sample = padding.sample

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (sample[i] == sample[j]) & ((i - j).abs() <= width)

    mask = _blocks(near, len(sample), len(sample), sample.device)
    flex = _compiled_flex()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flex(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask)
        return out[0].transpose(0, 1)

    return run


def flex_seeds(padding: Padding, seeds: int) -> Run:
    """The same with the seeds repeated for every sample, each masked to its sample's rows."""
    sample = padding.sample

    def own(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i // seeds == sample[j]

    mask = _blocks(own, padding.n * seeds, len(sample), sample.device)
    flex = _compiled_flex()

    def run(queries: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = queries.repeat(padding.n, 1, 1)
        out: Tensor = flex(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask)
        return out[0].transpose(0, 1).view(padding.n, seeds, *queries.shape[1:])

    return run


def _blocks(mask: Callable[..., Tensor], queries: int, keys: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(mask, None, None, queries, keys, device=str(device))


def flash(padding: Padding, *, window: int) -> Run:
    """flash-attn over the packed rows. Raises ImportError without that package."""
    flash_attn_varlen_func = import_module("flash_attn").flash_attn_varlen_func

    bounds = F.pad(padding.lengths.cumsum(0), (1, 0)).int()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        settings = {"window_size": (window, window)}
        longest = padding.longest
        out: Tensor = flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, **settings)
        return out

    return run
