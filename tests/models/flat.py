"""A backbone whose inputs are plain tensors."""

from __future__ import annotations

import torch

from kunlun.features.batch import Batch, Jagged


class Flat(torch.nn.Module):
    """The backbone with plain tensors as inputs, as exporters want it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.kinds = model.backbone, list(model.schema.events)
        self.caps = {k: e.max_len for k, e in model.schema.events.items()}

    def forward(self, tokens, values, offsets, ages):
        layouts = zip(self.kinds, values, offsets, ages, strict=True)
        return self.backbone(tokens, {k: (Jagged(v, o, self.caps[k]), a) for k, v, o, a in layouts})


def flat_inputs(model: torch.nn.Module, batch: Batch) -> tuple:
    """What Flat takes, for the events and rows of a batch."""
    tokens, events = model.embedding(batch)
    parts = list(events.values())
    return (
        tokens.detach(),
        [s.values.detach() for s, _ in parts],
        [s.offsets for s, _ in parts],
        [age for _, age in parts],
    )
