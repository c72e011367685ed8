"""What a model costs, module by module, from the formulas that stand beside the layers.

Convention: forward FLOPs of matrix products only, a multiply-add counts two, element-wise work
nothing; attention counts the pairs that really meet. Training costs three times that. The same
convention as torch.utils.flop_counter, which the tests hold it against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kunlun.features.batch import Batch
from kunlun.models.kunlun import Kunlun, KunlunBackbone, KunlunLayer, TowerLayer


@dataclass(frozen=True)
class Row:
    """One line of the plan: forward FLOPs per sample."""

    module: str
    parameters: int
    flops: float


def count(model: nn.Module, lengths: dict[str, Tensor]) -> list[Row]:
    """Rows for every module of the model.

    lengths: event type -> history lengths int64 [n] of n typical samples, before truncation by the
    model's own `history` (as `lengths_of(batch)` gives them).
    """
    if not isinstance(model, Kunlun):
        raise TypeError(f"no FLOP formulas for {type(model).__name__}")
    n = len(next(iter(lengths.values()))) if lengths else 1
    events = {k: int(v.sum()) for k, v in lengths.items()}
    rows = [
        Row("embedding.tables", _size(model.embedding.tables), 0.0),
        Row(
            "embedding.maps",
            _size(model.embedding) - _size(model.embedding.tables),
            model.embedding.flops(n, events) / n,
        ),
    ]
    kept = {k: v.clamp(max=model.backbone.history[k]) for k, v in lengths.items()}
    rows += _backbone(model.backbone, n, kept)
    rows.append(Row("head", _size(model.head), model.head.flops(n) / n))
    return rows


def _backbone(backbone: KunlunBackbone, n: int, lengths: dict[str, Tensor]) -> list[Row]:
    rows = []
    if _size(backbone.rote):
        rows.append(Row("rote", _size(backbone.rote), 0.0))
    for i, layer in enumerate(backbone.layers):
        assert isinstance(layer, KunlunLayer)
        generators = [layer.weight_generation, layer.user_weight_generation]
        present = [g for g in generators if g is not None]
        flops = sum(g.flops(n) for g in present) / n
        rows.append(Row(f"layer{i}.weight_generation", sum(map(_size, present)), flops))
        for kind, tower in layer.tower.items():
            assert isinstance(tower, TowerLayer)
            rows += _tower(f"layer{i}.{kind}", tower, n, lengths[kind])
        interaction = layer.interaction
        rows.append(Row(f"layer{i}.interaction", _size(interaction), interaction.flops(n) / n))
    return rows


def _tower(name: str, tower: TowerLayer, n: int, lengths: Tensor) -> list[Row]:
    events, rows = int(lengths.sum()), []
    if tower.ffn is not None:
        rows.append(Row(f"{name}.ffn", _size(tower.ffn), tower.ffn.flops(n, events) / n))
    if tower.attention is not None:
        flops = tower.attention.flops(lengths) / n
        rows.append(Row(f"{name}.window", _size(tower.attention), flops))
    if tower.pooling is not None:
        pooling = tower.pooling
        rows.append(Row(f"{name}.pooling", _size(pooling), pooling.flops(n, events) / n))
    return rows


def lengths_of(batch: Batch) -> dict[str, Tensor]:
    """History lengths of a batch by event type, int64 [B] (expanded to rows)."""
    found = {}
    for kind, events in batch.events.items():
        lengths = (events.offsets[1:] - events.offsets[:-1]).long()
        found[kind] = lengths if batch.request is None else lengths[batch.request]
    return found


def _size(module: nn.Module | torch.Tensor) -> int:
    return sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0
