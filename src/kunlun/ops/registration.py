"""How a function becomes an operator of torch, gets its gradient, or is a constant when compiled.

What torch.library.custom_op and its register_autograd give, at less cost of a call (docs/log.md, 1
December): no wrapper around the function, no look for aliases at run time, one autograd.Function an
operator. Reverse mode only: forward mode and the derivatives of torch.func are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("kunlun", "FRAGMENT")  # what it registers ends with it

Function = TypeVar("Function", bound=Callable[..., Any])
Saved = tuple[Tensor, ...]
Save = Callable[[Any, tuple[Any, ...], Any], None]
"""(ctx, all arguments, result): keeps what the gradient needs; ctx.needs_input_grad[i] is that of
argument i."""
Differentiate = Callable[..., tuple[Any, ...]]
"""(ctx, saved tensors, one gradient a result, or a list of them) -> one gradient an argument."""


def constant(function: Function) -> Function:
    """Decorator: torch.compile takes the answer and does not trace how it is found.

    As torch.compiler.assume_constant_result, which imports the whole compiler for it: a second of
    every start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def operator(function: Callable[..., Any]) -> torch._ops.OpOverload:
    """Decorator: `function` named NAME_op as kunlun::NAME, on any device.

    Its schema is that of its annotations; it mutates nothing and returns no view.
    """
    name = function.__name__.removesuffix("_op")
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    defined: torch._ops.OpOverload = getattr(torch.ops.kunlun, name).default
    return defined


def register_fake(op: torch._ops.OpOverload) -> Callable[[Function], Function]:
    """Decorator: shapes and dtypes of the results of `op`, for tracing."""

    def register(function: Function) -> Function:
        torch.library.register_fake(op, function, lib=_LIBRARY)
        return function

    return register


def register_autograd(
    op: torch._ops.OpOverload, differentiate: Differentiate, *, save: Save
) -> None:
    """The gradient of `op`, which itself has none: a second derivative is a RuntimeError."""
    below = torch._C._after_autograd_keyset
    schema = op._schema
    defaults = tuple(a.default_value for a in schema.arguments)  # torch leaves equal ones out
    is_list = str(schema.returns[0].type) == "List[Tensor]"  # a Function takes tuples only

    def run(keys: Any, arguments: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & below, *arguments)

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments_and_keys: Any) -> Any:
            arguments, keys = arguments_and_keys[:-1], arguments_and_keys[-1]
            result = run(keys, arguments)
            save(ctx, arguments + defaults[len(arguments) :], result)
            return tuple(result) if is_list else result

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            saved = ctx.saved_tensors
            with torch.no_grad():
                found = differentiate(ctx, saved, *([list(grads)] if is_list else grads))
            if torch.is_grad_enabled():  # create_graph=True
                found = _Last.apply(schema.name, found, *grads, *saved)
            return (*found, None)

    def autograd(keys: Any, *arguments: Any) -> Any:
        reverse = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        if not reverse and forward_ad._current_level < 0:
            return run(keys, arguments)
        result = Gradient.apply(*arguments, keys)
        return list(result) if is_list else result

    _LIBRARY.impl(schema.name, autograd, "Autograd", with_keyset=True)


class _Last(torch.autograd.Function):
    """Gradients, tied to what they were computed from: torch would take them for constants."""

    @staticmethod
    def forward(ctx: Any, name: str, found: tuple[Tensor | None, ...], *_: Tensor) -> Any:
        ctx.name = name
        return found

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(f"{ctx.name}: it cannot be differentiated twice")
