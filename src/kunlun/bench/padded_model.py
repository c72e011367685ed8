"""Kunlun padded and eager: the same weights over [n, T, d] tensors, as one writes it without our
operators. Only what handles sequences is written again; everything else is the model's own.

GDPA is matmul, activation, matmul; both attentions are torch's SDPA under a boolean mask, [T, T]
for the window. Legend: n rows of the batch, T the longest history of a type in this batch, d width
of its tower, H heads, D context width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kunlun.bench.plain import Padding
from kunlun.errors import ConfigError
from kunlun.features.batch import Batch
from kunlun.layers.norm import layer_norm, rms_norm
from kunlun.layers.personalized_ffn import PersonalizedFFN
from kunlun.layers.pooling import SeedPooling
from kunlun.layers.window import SlidingWindowAttention
from kunlun.models.kunlun import Kunlun, KunlunLayer, TowerConfig, TowerLayer
from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.jagged import Jagged


class Sequences(NamedTuple):
    """One event type: values [n, T, d], who is there, whom a row may read, rotation angles."""

    values: Tensor
    padding: Padding
    window: Tensor | None  # bool [n, 1, T, T]
    cos: Tensor | None  # [n, T, 1, d_h / 2]
    sin: Tensor | None

    def with_values(self, values: Tensor) -> Sequences:
        """Same sequences, other contents."""
        return self._replace(values=values)


def _odd(tower: TowerConfig) -> bool:
    ffn = tower.ffn
    block = ffn.kind != "gdpa" or ffn.norm != "sandwich" or not isinstance(ffn.activation, str)
    return block or tower.history is not None or tower.ages or tower.pooling.reduce != "mean"


class PaddedKunlun:
    """Calls like the model it is made of. Raises ConfigError for options it does not know."""

    def __init__(self, model: Kunlun) -> None:
        config, towers = model.config, model.config.towers(model.schema)
        if config.user_only or any(map(_odd, towers.values())):
            raise ConfigError(
                "bench model: the padded model has GDPA in its sandwich alone, no activations by "
                "head, cut histories, ages, summed pooling or user_only; measure a preset without "
                "them"
            )
        self.model = model

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [n, tasks]."""
        model = self.model
        x, packed = model.embedding(batch)
        events = {kind: self._pad(kind, s, age) for kind, (s, age) in packed.items()}
        summaries: dict[str, Tensor] = {}
        for layer in model.backbone.layers:
            assert isinstance(layer, KunlunLayer)
            x_sum = layer.weight_generation(x)
            for kind, tower in layer.tower.items():
                assert isinstance(tower, TowerLayer)
                events[kind], summary = run_tower(tower, events[kind], x_sum, summaries.get(kind))
                assert summary is not None  # the first layer is global
                summaries[kind] = summary
            x = layer.interaction(torch.cat([x_sum, *summaries.values()], dim=1))
        logits: Tensor = model.head(x)
        return logits

    def _pad(self, kind: str, s: Jagged, age: Tensor) -> Sequences:
        windows = [
            module.window
            for name, module in self.model.backbone.named_modules()
            if isinstance(module, SlidingWindowAttention) and name.split(".")[-2] == kind
        ]
        return pad(s, self.model.backbone.rote[kind](s, age), windows[0] if windows else None)


def pad(s: Jagged, angle: Tensor | None, window: int | None) -> Sequences:
    """Packed to padded; window None: no mask is made."""
    padding = Padding(s.lengths.tolist(), s.values.device)
    turn = None if angle is None else padding.pad(angle)[:, :, None]
    return Sequences(
        padding.pad(s.values),
        padding,
        None if window is None else padding.band(window),
        None if turn is None else turn.cos(),
        None if turn is None else turn.sin(),
    )


def run_tower(
    tower: TowerLayer, s: Sequences, x_sum: Tensor, summary: Tensor | None
) -> tuple[Sequences, Tensor | None]:
    """TowerLayer.forward."""
    if tower.pooling_first and tower.pooling is not None:
        summary = run_pooling(tower.pooling, s)
    if tower.ffn is not None:
        assert isinstance(tower.ffn, PersonalizedFFN)
        s = run_ffn(tower.ffn, s, x_sum)
    if tower.attention is not None:
        s = run_window(tower.attention, s)
    if not tower.pooling_first and tower.pooling is not None:
        summary = run_pooling(tower.pooling, s)
    return s, summary


def run_ffn(ffn: PersonalizedFFN, s: Sequences, x_sum: Tensor) -> Sequences:
    """PersonalizedFFN.forward: x_sum [n, n_sum, D]."""
    config = ffn.config
    u = layer_norm(s.values)
    rows = rms_norm(torch.matmul(ffn.expand, x_sum))
    k, v = (torch.matmul(rows, w).unflatten(2, (ffn.heads, -1)) for w in (ffn.key, ffn.value))
    v = v * ffn.gain[:, None].to(v.dtype)
    q = u.to(k.dtype).unflatten(2, (ffn.heads, -1)).transpose(1, 2)
    scores = q @ k.permute(0, 2, 3, 1) * ffn.scale  # [n, H, T, K]
    assert isinstance(config.activation, str)
    y = ACTIVATIONS[config.activation].formula(scores)
    y = (y @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
    return s.with_values(s.values + rms_norm(u + y))


def run_window(attention: SlidingWindowAttention, s: Sequences) -> Sequences:
    """SlidingWindowAttention.forward."""
    assert s.window is not None
    qkv = attention.qkv(layer_norm(s.values)).unflatten(2, (3, attention.heads, -1))
    q, k, v = qkv.unbind(2)
    q, k = _rotate(q, s), _rotate(k, s)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, s.window)
    return s.with_values(s.values + attention.out(y.transpose(1, 2).flatten(2)))


def run_pooling(pooling: SeedPooling, s: Sequences) -> Tensor:
    """SeedPooling.forward: [n, tokens, D]."""
    n = s.values.shape[0]
    kv = pooling.key_value(layer_norm(s.values)).unflatten(2, (2, pooling.heads, -1))
    k, v = kv.unbind(2)
    k = _rotate(k, s)
    q = pooling.query(layer_norm(pooling.seeds)).unflatten(1, (pooling.heads, -1)).to(k.dtype)
    q = q.transpose(0, 1).expand(n, -1, -1, -1)
    # an empty history is rows of zeros through all layers, and so is what it pools
    y = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), s.padding.keys())
    out: Tensor = pooling.compress(y.transpose(1, 2).flatten(2))
    return out + pooling.default


def _rotate(x: Tensor, s: Sequences) -> Tensor:
    """Turns channel pairs of [n, T, H, d_h]; computed in float32."""
    if s.cos is None or s.sin is None:
        return x
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = [even * s.cos - odd * s.sin, even * s.sin + odd * s.cos]
    return torch.stack(turned, -1).flatten(-2).to(x.dtype)
