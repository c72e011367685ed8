"""Sample rows -> Batch: every attribute and event gathered by index, no per-row Python.

Shapes: B rows, R requests, L events.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kunlun.data.dataset import Columns, Dataset
from kunlun.data.encode import ranges
from kunlun.data.values import Int64, Ragged
from kunlun.features.batch import Batch, EventSequence, Jagged
from kunlun.features.schema import Input


class _Store(NamedTuple):
    columns: dict[str, NDArray[Any]]  # memory-mapped
    offsets: Int64
    inputs: list[Input]
    max_len: int


class Assembler:
    """Makes batches of one dataset.

    group_requests: rows of equal (user, time) in a batch share one request and its histories.
    """

    def __init__(self, dataset: Dataset, *, group_requests: bool = False) -> None:
        self.schema = schema = dataset.schema
        self.group_requests = group_requests
        self.attributes = {"user": dataset.users, "item": dataset.items}
        self.place = {i.name: self._place(i) for i in schema.inputs}
        self.stores = {
            kind: _Store(
                dataset.events(kind), dataset.offsets(kind), schema.event_inputs(kind), e.max_len
            )
            for kind, e in schema.events.items()
        }
        self.names = [  # columns of the samples that a batch needs
            "user", "item", "time", "weight", "group",
            *(f"cut_{kind}" for kind in schema.events),
            *(f"label.{name}" for name in schema.tasks),
            *(f"feature.{name}" for name, place in self.place.items() if place == "sample"),
        ]  # fmt: skip

    def _place(self, entry: Input) -> str:
        """Where an input is stored: with its user, its item, or the sample."""
        for role, columns in self.attributes.items():
            if entry.feature.role == role and entry.name in columns:
                return role
        return "sample"

    def __call__(self, rows: Columns) -> Batch:
        """Columns `names` of B samples -> Batch on the CPU, which keeps those arrays."""
        user, item, time = _plain(rows["user"]), _plain(rows["item"]), _plain(rows["time"])
        index = {"user": user, "item": item}
        categorical, multi = dict[str, Tensor](), dict[str, Jagged]()
        numeric = np.empty((len(user), len(self.schema.numeric)), np.float32)
        column = 0
        for entry in self.schema.inputs:
            place = self.place[entry.name]
            if place == "sample":
                values = rows[f"feature.{entry.name}"]
            else:
                values = take(self.attributes[place][entry.name], index[place])
            if entry.kind == "numeric":
                numeric[:, column] = _plain(values)
                column += 1
            elif isinstance(values, Ragged):
                ids, offsets = _ids(values.values), torch.from_numpy(values.offsets)
                multi[entry.name] = Jagged(ids, offsets, entry.feature.max_len)
            else:
                categorical[entry.name] = _ids(values)
        request, chosen = None, None
        if self.group_requests:
            request, chosen = _requests(user, time)
        labels = [_plain(rows[f"label.{name}"]) for name in self.schema.tasks]
        return Batch(
            categorical=categorical,
            multi=multi,
            numeric=torch.from_numpy(numeric),
            events={kind: self._events(kind, rows, chosen) for kind in self.stores},
            request=None if request is None else torch.from_numpy(request),
            request_time=torch.from_numpy(time if chosen is None else time[chosen]),
            labels=torch.from_numpy(np.stack(labels, axis=1)),
            weights=torch.from_numpy(_plain(rows["weight"])),
            group=torch.from_numpy(_plain(rows["group"])),
        )

    def _events(self, kind: str, rows: Columns, chosen: Int64 | None) -> EventSequence:
        """The last max_len events before each cut, oldest first."""
        store = self.stores[kind]
        cut, user = _plain(rows[f"cut_{kind}"]), _plain(rows["user"])
        if chosen is not None:
            cut, user = cut[chosen], user[chosen]
        lengths = np.minimum(cut - store.offsets[user], store.max_len)
        index = ranges(cut - lengths, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        item = store.columns["item"][index]
        ids, numeric = dict[str, Tensor](), []
        for entry in store.inputs:
            if entry.feature.role == "item":
                values = _plain(self.attributes["item"][entry.name])[item]
            else:
                values = store.columns[f"feature.{entry.name}"][index]
            if entry.kind == "numeric":
                numeric.append(values)
            else:
                ids[entry.name] = _ids(values)
        packed = np.stack(numeric, axis=1) if numeric else np.zeros((len(index), 0), np.float32)
        return EventSequence(
            ids=ids,
            numeric=torch.from_numpy(packed),
            timestamps=torch.from_numpy(store.columns["time"][index]),
            offsets=torch.from_numpy(offsets),
            max_len=store.max_len,
        )


def take(values: NDArray[Any] | Ragged, index: NDArray[np.integer]) -> NDArray[Any] | Ragged:
    """Rows index[0], index[1], ... of a column."""
    if isinstance(values, Ragged):
        starts = values.offsets[index]
        lengths = values.offsets[index.astype(np.int64) + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(values.values[ranges(starts, lengths)], offsets)
    found: NDArray[Any] = values[index]
    return found


def _requests(user: NDArray[np.int32], time: Int64) -> tuple[Int64, Int64]:
    """Request of each row [B], numbered by first appearance, and a row of each request [R]."""
    order = np.lexsort((time, user))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(user[order]) != 0) | (np.diff(time[order]) != 0)
    first = order[new]  # lexsort is stable: the earliest row of each
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    request = np.empty(len(order), np.int64)
    request[order] = rank[np.cumsum(new) - 1]
    return request, np.sort(first)


def _plain(values: NDArray[Any] | Ragged) -> NDArray[Any]:
    assert isinstance(values, np.ndarray)
    return values


def _ids(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
