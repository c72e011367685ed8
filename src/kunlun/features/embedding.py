"""The sparse half of every model: ids and numbers -> context tokens and event vectors.

Shapes: B rows, R requests, L packed events, N tokens, D token width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kunlun.features.batch import Batch, EventSequence
from kunlun.features.schema import Input, Schema
from kunlun.layers.mlp import MLP
from kunlun.ops.jagged import Jagged

TABLE_STD = 0.02  # ids never seen in training stay close to neutral


class EmbeddingTables(nn.Module):
    """All tables of a model; those of one width lie in one weight, so that a batch is one lookup.

    weights: width -> nn.Embedding(sparse=True); rows of a table start at `start[table]`.
    """

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        rows: dict[int, int] = {}
        self.place: dict[str, tuple[int, int]] = {}  # table -> (width, first row)
        for table, (size, dim) in sizes.items():
            self.place[table] = (dim, rows.get(dim, 0))
            rows[dim] = rows.get(dim, 0) + size
        self.weights = nn.ModuleDict(
            {str(dim): nn.Embedding(count, dim, sparse=True) for dim, count in rows.items()}
        )
        for weight in self.weights.values():
            nn.init.normal_(weight.weight, std=TABLE_STD)  # type: ignore[arg-type]

    def forward(self, requests: list[tuple[str, Tensor]]) -> list[Tensor]:
        """(table, int64 ids of any shape) pairs -> embeddings [*ids.shape, dim], same order."""
        found: list[Tensor] = [torch.empty(0)] * len(requests)
        for width, weight in self.weights.items():
            mine = [i for i, (t, _) in enumerate(requests) if self.place[t][0] == int(width)]
            if not mine:
                continue
            ids = [(requests[i][1] + self.place[requests[i][0]][1]).flatten() for i in mine]
            rows = weight(torch.cat(ids)).split([len(i) for i in ids])
            for i, row in zip(mine, rows, strict=True):
                found[i] = row.view(*requests[i][1].shape, int(width))
        return found


@dataclass(frozen=True)
class Field:
    """One context token: the inputs projected into it.

    of_request: all rows of a request have the same value, whatever the candidate and its place.
    """

    token: str
    inputs: list[Input]
    of_request: bool

    def width(self, schema: Schema) -> int:
        """Concatenated width of its inputs."""
        return sum(
            1 if i.kind == "numeric" else schema.table_sizes[i.table][1] for i in self.inputs
        )


def fields(schema: Schema) -> list[Field]:
    """The context tokens of a schema, in schema order."""
    groups: dict[str, list[Input]] = {}
    for entry in schema.inputs:
        groups.setdefault(entry.token, []).append(entry)
    return [Field(t, g, all(_of_request(schema, i) for i in g)) for t, g in groups.items()]


def _of_request(schema: Schema, entry: Input) -> bool:
    """User features, the request's own clock, and counters of nothing but these."""
    feature, log = entry.feature, schema.tables.impressions
    if feature.kind == "counter":
        users = {n for n, f in schema.features.items() if f.role == "user"} | {log.user}
        return set(feature.keys) <= users
    if feature.kind == "timestamp" and feature.role == "context":
        return feature.column is None or feature.column == log.time
    return feature.role == "user"


class FeatureEmbedding(nn.Module):
    """Batch -> (tokens [B, N, D], events {type: (Jagged [L, d_e], age float64 [L] seconds)}).

    Every field becomes one token by a linear map of its own; numeric inputs share one field unless
    the schema says otherwise. An event's embeddings are concatenated and mapped by a 2-layer MLP.
    FLOPs: 2 B D sum of field widths; per event type 2 L d_e (inputs + d_e).
    """

    order: Tensor  # int64 [N], fields sorted by width -> schema order

    def __init__(self, schema: Schema, dim: int, event_dims: dict[str, int]) -> None:
        super().__init__()
        self.schema = schema
        self.tables = EmbeddingTables(schema.table_sizes)
        self.event_mlp = nn.ModuleDict(
            {kind: MLP(self._event_width(kind), width, width) for kind, width in event_dims.items()}
        )
        self.fields = fields(schema)
        self.request_tokens = [f.of_request for f in self.fields]
        widths = [f.width(schema) for f in self.fields]
        by_width = sorted(set(widths))
        self.members = {w: [i for i, v in enumerate(widths) if v == w] for w in by_width}
        self.maps = nn.ParameterDict(
            {
                str(w): nn.Parameter(torch.randn(len(m), w, dim) * w**-0.5)
                for w, m in self.members.items()
            }
        )
        self._level_numbers()
        self.bias = nn.Parameter(torch.randn(len(self.fields), dim) * TABLE_STD)
        order = torch.tensor([i for m in self.members.values() for i in m])
        self.register_buffer("order", torch.argsort(order), persistent=False)
        self.numeric_index = {name: i for i, name in enumerate(schema.numeric)}

    @torch.no_grad()
    def _level_numbers(self) -> None:
        """Start numbers, which come at unit size, as small as ids, which come at TABLE_STD."""
        sizes = self.schema.table_sizes
        for width, members in self.members.items():
            for place, i in enumerate(members):
                column = 0
                for entry in self.fields[i].inputs:
                    if entry.kind == "numeric":
                        self.maps[str(width)][place, column] *= TABLE_STD
                    column += 1 if entry.kind == "numeric" else sizes[entry.table][1]
        for kind, mlp in self.event_mlp.items():
            numbers = sum(entry.kind == "numeric" for entry in self.schema.event_inputs(kind))
            if isinstance(mlp, MLP) and numbers:
                mlp.up.weight[:, -numbers:] *= TABLE_STD

    def _event_width(self, kind: str) -> int:
        inputs, sizes = self.schema.event_inputs(kind), self.schema.table_sizes
        return max(1, sum(1 if i.kind == "numeric" else sizes[i.table][1] for i in inputs))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, tuple[Jagged, Tensor]]]:
        """See the class."""
        lookups = _Lookups()
        for entry in self.schema.inputs:
            if entry.kind == "categorical":
                lookups.add(("", entry.name), entry.table, batch.categorical[entry.name])
            elif entry.kind == "multi":
                lookups.add(("", entry.name), entry.table, batch.multi[entry.name].values)
        for kind in self.event_mlp:
            for entry in self.schema.event_inputs(kind):
                if entry.kind == "categorical":
                    lookups.add((kind, entry.name), entry.table, batch.events[kind].ids[entry.name])
        rows = lookups.read(self.tables)
        tokens = self._tokens(batch, rows)
        return tokens, {kind: self._events(kind, batch, rows) for kind in self.event_mlp}

    def _tokens(self, batch: Batch, rows: dict[tuple[str, str], Tensor]) -> Tensor:
        parts = []
        for width, members in self.members.items():
            x = torch.stack([self._field(self.fields[i], batch, rows) for i in members])
            parts.append(torch.bmm(x, self.maps[str(width)]))  # [n, B, D]
        tokens = torch.cat(parts).index_select(0, self.order).transpose(0, 1)
        return (tokens + self.bias).contiguous()

    def _field(self, field: Field, batch: Batch, rows: dict[tuple[str, str], Tensor]) -> Tensor:
        """The concatenated inputs of one field, [B, width]."""
        parts = []
        for entry in field.inputs:
            if entry.kind == "numeric":
                index = self.numeric_index[entry.name]
                parts.append(batch.numeric[:, index : index + 1])
            elif entry.kind == "multi":
                parts.append(_mean(batch.multi[entry.name], rows["", entry.name]))
            else:
                parts.append(rows["", entry.name])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _events(
        self, kind: str, batch: Batch, rows: dict[tuple[str, str], Tensor]
    ) -> tuple[Jagged, Tensor]:
        events = batch.events[kind]
        inputs = self.schema.event_inputs(kind)
        parts = [rows[kind, i.name] for i in inputs if i.kind == "categorical"]
        if events.numeric.shape[1]:
            parts.append(events.numeric)
        if not parts:  # an event without features still says that it happened
            parts.append(events.timestamps.new_ones(events.timestamps.shape[0], 1).float())
        values = self.event_mlp[kind](torch.cat(parts, dim=1)).float()  # the residual stream
        layout = Jagged(values, events.offsets, events.max_len)
        return layout, _age(events, layout, batch.request_time)

    def flops(self, rows: int, events: dict[str, int]) -> int:
        """Forward FLOPs for `rows` samples and that many events of each type."""
        maps = sum(2 * rows * weight.numel() for weight in self.maps.values())
        mlps = [(m, events[k]) for k, m in self.event_mlp.items() if isinstance(m, MLP)]
        return int(maps + sum(mlp.flops(count) for mlp, count in mlps))


class _Lookups:
    """Collects the ids of a batch so that the tables are read in one go."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, str]] = []
        self.requests: list[tuple[str, Tensor]] = []

    def add(self, key: tuple[str, str], table: str, ids: Tensor) -> None:
        self.keys.append(key)
        self.requests.append((table, ids))

    def read(self, tables: EmbeddingTables) -> dict[tuple[str, str], Tensor]:
        return dict(zip(self.keys, tables(self.requests), strict=True))


def _age(events: EventSequence, layout: Jagged, request_time: Tensor) -> Tensor:
    """Seconds from each event to its request, float64: in float32 events of one second would lose
    their order and their gaps at half a year."""
    age = request_time[layout.segments] - events.timestamps
    return age.to(torch.float64) / 1000.0


def _mean(layout: Jagged, rows: Tensor) -> Tensor:
    """Mean of each row's embeddings, zeros where it has none; rows [L, dim] -> [n, dim]."""
    total = rows.new_zeros(layout.n, rows.shape[1]).index_add_(0, layout.segments, rows)
    return total / layout.lengths.clamp(min=1).unsqueeze(1)
