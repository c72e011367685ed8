"""Two optimizers, one schedule: row-wise Adagrad for tables, AdamW for everything dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kunlun.ops import row_wise_adagrad_
from kunlun.training.config import TrainConfig


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row, for nn.Embedding(sparse=True); touches only used rows.

    What it computes: kunlun.ops.row_wise_adagrad_. State: 4 bytes a row instead of Adam's 8 a
    weight. weight_decay is decoupled and reaches a row only when a batch uses it. Raises TypeError
    for a dense gradient and ShapeError for a table that is not contiguous.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if not weight.grad.is_sparse:
                    raise TypeError(
                        "RowWiseAdagrad takes sparse gradients: nn.Embedding(sparse=True)"
                    )
                state = self.state[weight]
                if not state:
                    state["sum"] = weight.new_zeros(weight.shape[0])
                row_wise_adagrad_(
                    weight,
                    state["sum"],
                    weight.grad._indices()[0],  # as they stand: rows used twice, twice
                    weight.grad._values(),
                    lr=group["lr"],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                )


def learning_rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """Share of the base learning rate at optimizer step 0 .. total - 1: linear rise, then decay."""
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.decay == "none":
        return 1.0
    left = 1 - done if config.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.final + (1 - config.final) * left


class Optimizers:
    """Both optimizers of a model, stepped together; either may have nothing to do."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        tables = {
            f"{path}.weight"
            for path, module in model.named_modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
        }
        self.tables = {n: p for n, p in model.named_parameters() if n in tables}
        self.dense = {n: p for n, p in model.named_parameters() if n not in tables}
        decayed = [p for n, p in self.dense.items() if _is_decayed(n, p)]
        plain = [p for n, p in self.dense.items() if not _is_decayed(n, p)]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        self.adam = torch.optim.AdamW(groups, lr=config.lr, fused=True) if groups else None
        self.adagrad = (
            RowWiseAdagrad(
                self.tables.values(), config.table_lr, weight_decay=config.table_weight_decay
            )
            if self.tables
            else None
        )

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        for parameter in (*self.dense.values(), *self.tables.values()):
            parameter.grad = None

    def norm(self) -> Tensor:
        """Of all dense gradients together, a scalar."""
        grads = [p.grad for p in self.dense.values() if p.grad is not None]
        return nn.utils.get_total_norm(grads)

    def clip(self, norm: Tensor) -> None:
        """Scale the dense gradients, of that `norm`, down to config.clip."""
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.dense.values(), self.config.clip, norm)

    def step(self, factor: float) -> None:
        """Update all weights with `factor` times the base learning rates."""
        rates = (self.adam, self.config.lr), (self.adagrad, self.config.table_lr)
        for optimizer, rate in rates:
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
                optimizer.step()

    def _owners(self) -> Iterator[tuple[str, torch.optim.Optimizer, Tensor]]:
        for name, weight in self.dense.items():
            assert self.adam is not None  # it exists as soon as there is a dense weight
            yield name, self.adam, weight
        for name, weight in self.tables.items():
            assert self.adagrad is not None
            yield name, self.adagrad, weight

    def state_tensors(self) -> dict[str, Tensor]:
        """All optimizer state as `WEIGHT/KEY` -> tensor; the schedule needs none."""
        return {
            f"{name}/{key}": value
            for name, optimizer, weight in self._owners()
            for key, value in optimizer.state.get(weight, {}).items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state_tensors`."""
        owners = {name: (optimizer, weight) for name, optimizer, weight in self._owners()}
        for path, value in tensors.items():
            name, _, key = path.rpartition("/")
            optimizer, weight = owners[name]
            optimizer.state[weight][key] = value.to(weight.device)


def _is_decayed(name: str, weight: Tensor) -> bool:
    """Decay pulls matrices towards zero; gains, biases and default tokens mean something there."""
    return weight.ndim > 1 and not name.rpartition(".")[2].endswith(("bias", "default"))
