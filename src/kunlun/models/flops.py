"""What a model costs, module by module, from the formulas that stand beside the layers.

Convention: forward FLOPs of matrix products only, a multiply-add counts two, element-wise work
nothing; attention counts the pairs that really meet. Training costs three times that. The same
convention as torch.utils.flop_counter, which the tests hold it against.
"""

from __future__ import annotations

from torch import Tensor, nn

from kunlun.features.batch import Batch
from kunlun.models.ranker import Ranker, Row, size

__all__ = ["Row", "count", "lengths_of"]


def count(model: nn.Module, lengths: dict[str, Tensor]) -> list[Row]:
    """Rows for every module of the model.

    lengths: event type -> history lengths int64 [n] of n typical samples, before truncation by the
    model's own `history` (as `lengths_of(batch)` gives them).
    """
    if not isinstance(model, Ranker):
        raise TypeError(f"no FLOP formulas for {type(model).__name__}")
    n = len(next(iter(lengths.values()))) if lengths else 1
    events = {k: int(v.sum()) for k, v in lengths.items()}
    embedding, tables = model.embedding, size(model.embedding.tables)
    return [
        Row("embedding.tables", tables, 0.0),
        Row("embedding.maps", size(embedding) - tables, embedding.flops(n, events) / n),
        *model.backbone.costs(n, lengths),
        Row("head", size(model.head), model.head.flops(n) / n),
    ]


def lengths_of(batch: Batch) -> dict[str, Tensor]:
    """History lengths of a batch by event type, int64 [B] (expanded to rows)."""
    found = {}
    for kind, events in batch.events.items():
        lengths = (events.offsets[1:] - events.offsets[:-1]).long()
        found[kind] = lengths if batch.request is None else lengths[batch.request]
    return found
