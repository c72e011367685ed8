"""The modules that handle sequences, each alone on what it was called with in a real forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kunlun.bench.padded_model import Sequences, pad, run_ffn, run_pooling, run_window
from kunlun.layers.personalized_ffn import PersonalizedFFN
from kunlun.layers.pooling import SeedPooling
from kunlun.layers.window import SlidingWindowAttention
from kunlun.ops.jagged import Jagged

KINDS: dict[type[nn.Module], str] = {
    PersonalizedFFN: "ffn",
    SlidingWindowAttention: "window",
    SeedPooling: "pooling",
}


class Caught(NamedTuple):
    """A module and its arguments: sequences; context summary, angles or None."""

    module: nn.Module
    s: Jagged
    other: Tensor | None


class Call(NamedTuple):
    """A module's forward, and what its result is differentiated by."""

    run: Callable[[], Tensor]
    leaves: list[Tensor]


def catch(model: nn.Module, forward: Callable[[], object]) -> dict[str, list[Caught]]:
    """Kind -> every call of such a module while `forward` runs."""
    caught: dict[str, list[Caught]] = {}

    def hook(module: nn.Module, args: tuple[Jagged, Tensor | None]) -> None:
        s, other = args
        kept = s.with_values(s.values.detach().clone())
        other = None if other is None else other.detach().clone()
        caught.setdefault(KINDS[type(module)], []).append(Caught(module, kept, other))

    found = [module for module in model.modules() if type(module) in KINDS]
    handles = [module.register_forward_pre_hook(hook) for module in found]
    forward()
    for handle in handles:
        handle.remove()
    return caught


def calls(way: str, caught: Sequence[Caught]) -> list[Call]:
    """Ready to be timed; padding and masks, made once a batch in the model, are made here."""
    return [_padded(*one) if way == "padded" else _packed(*one) for one in caught]


def _packed(module: nn.Module, s: Jagged, other: Tensor | None) -> Call:
    s = s.with_values(s.values.clone().requires_grad_())
    extra = [] if other is None else [other.clone().requires_grad_()]

    def run() -> Tensor:
        out = module(s, extra[0] if extra else None)
        values: Tensor = out.values if isinstance(out, Jagged) else out
        return values

    return Call(run, [s.values, *extra, *module.parameters()])


def _padded(module: nn.Module, s: Jagged, other: Tensor | None) -> Call:
    context = isinstance(module, PersonalizedFFN)
    window = module.window if isinstance(module, SlidingWindowAttention) else None
    with torch.no_grad():
        padded = pad(s, None if context else other, window)
    leaves = [padded.values.requires_grad_()]
    leaves += [x.requires_grad_() for x in (padded.cos, padded.sin) if x is not None]
    leaves += module.parameters()
    if isinstance(module, PersonalizedFFN):
        assert other is not None
        x_sum = other.clone().requires_grad_()
        return Call(lambda: run_ffn(module, padded, x_sum).values, [x_sum, *leaves])
    if isinstance(module, SlidingWindowAttention):
        return Call(partial(_window, module, padded), leaves)
    assert isinstance(module, SeedPooling)
    return Call(partial(run_pooling, module, padded), leaves)


def _window(module: SlidingWindowAttention, s: Sequences) -> Tensor:
    return run_window(module, s).values


class _Stopwatch(TorchDispatchMode):
    """Seconds inside each of our registered operators, forward and backward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.spent: dict[str, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        start = self.clock()
        out = func(*args, **(kwargs or {}))
        if func.namespace == "kunlun":
            name = func._opname
            self.spent[name] = self.spent.get(name, 0.0) + self.clock() - start
        return out


def operator_shares(step: Callable[[], object], clock: Callable[[], float]) -> dict[str, float]:
    """Registered operator -> its share of one step."""
    start = clock()
    with _Stopwatch(clock) as watch:
        step()
    whole = clock() - start
    return {name: spent / whole for name, spent in sorted(watch.spent.items())}
