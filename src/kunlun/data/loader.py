"""Batches of one epoch, reproducible and resumable.

Batch k of an epoch is a pure function of (seed, epoch, k, rank, world), whatever the number of
workers. The epoch's order: row groups are permuted, WINDOW of them are read at a time and their
rows shuffled together, so memory is bounded by a window however long the log. Ranks take turns
within each global batch of world * batch_size rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from kunlun.data.collate import Assembler, take
from kunlun.data.dataset import Chunk, Columns, Dataset, concat
from kunlun.data.packed import Packed, pack, unpack
from kunlun.data.values import Int64
from kunlun.errors import ConfigError, RunError
from kunlun.features.batch import Batch

WINDOW = 4  # row groups shuffled together: 262,144 rows, about 100 MB with 60 columns
KEPT = 2  # windows in memory: a batch may lie across a border


class Loader:
    """Iterable of the batches of one epoch; iterate again for the next (see set_epoch).

    Args:
        split: train, valid or test.
        batch_size: rows of one rank's batch.
        shuffle: by (seed, epoch); else in order of time.
        rank, world: this process reads every world-th part. With drop_last every rank has equally
            many full batches; without, the last rows are shared evenly (a rank may get none).
        workers: processes that make batches ahead; 0 makes them here. Same batches either way.
        group_requests: rows of one (user, time) within a batch share a request.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = False,
        group_requests: bool = False,
    ) -> None:
        if batch_size < 1 or workers < 0 or not 0 <= rank < world:
            raise ConfigError(
                f"batch_size {batch_size}, workers {workers}, rank {rank} of {world}: expected a "
                "batch_size of at least 1, workers of at least 0 and rank below world"
            )
        self.dataset, self.split = dataset, split
        self.batch_size, self.workers = batch_size, workers
        self.plan = _Plan(dataset, split, batch_size, shuffle, seed, rank, world, drop_last)
        self.group_requests = group_requests
        self._local: _Batches | None = None
        self._epoch = 0
        self._consumed = 0
        self._resume = 0  # batches the next iteration leaves out

    def __len__(self) -> int:
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration; another one than loaded forgets a resume point."""
        if epoch != self._epoch:
            self._epoch, self._consumed, self._resume = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches handed out so far, and what they depend on."""
        return {"epoch": self._epoch, "consumed": self._consumed, **self.plan.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration of that epoch goes on behind the consumed batches.

        Raises RunError if the state was made with another seed, batch size, world or
        number of rows.
        """
        for key, value in self.plan.identity().items():
            if state.get(key) != value:
                raise RunError(
                    f"loader state: {key} was {state.get(key)}, is {value} now; resume with the "
                    "same data and settings"
                )
        self._epoch = int(state["epoch"])
        self._consumed = self._resume = int(state["consumed"])

    def __iter__(self) -> Iterator[Batch]:
        start, self._resume = self._resume, 0
        self._consumed = start
        return self._count(start)

    def _count(self, start: int) -> Iterator[Batch]:
        for batch in self._batches(start):
            self._consumed += 1  # before the consumer works on it, so that a checkpoint counts it
            yield batch

    def _batches(self, start: int) -> Iterator[Batch]:
        if self._local is None:
            self._local = _Batches(self.dataset, self.split, self.plan, self.group_requests)
        batches = self._local
        batches.epoch = self._epoch
        indices = range(start, len(self))
        if self.workers == 0:
            for k in indices:
                yield batches.make(k)
            return
        batches.forget()
        # Worker w makes the batches k = w modulo `workers`; they arrive in order.
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=indices,
            num_workers=self.workers,
            prefetch_factor=4,
            collate_fn=_as_it_is,
        )
        for packed in loader:
            yield unpack(packed)


class _Plan:
    """Which rows make up batch k: pure arithmetic, no data."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world: int,
        drop_last: bool,
    ) -> None:
        self.chunks = dataset.chunks(split)
        self.rows = dataset.rows(split)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world = rank, world
        self.full, self.rest = divmod(self.rows, batch_size * world)
        if drop_last:
            self.rest = 0

    def __len__(self) -> int:
        return self.full + (self.span(self.full)[1] > self.span(self.full)[0])

    def span(self, k: int) -> tuple[int, int]:
        """Positions [start, end) of batch k in the epoch's order."""
        base = k * self.batch_size * self.world
        share = self.batch_size * self.world if k < self.full else self.rest
        return base + share * self.rank // self.world, base + share * (self.rank + 1) // self.world

    def windows(self, epoch: int) -> list[list[Chunk]]:
        """Row groups that are shuffled together, in the epoch's order."""
        if not self.shuffle:
            return [[chunk] for chunk in self.chunks]
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.chunks))
        permuted = [self.chunks[i] for i in order]
        return [permuted[i : i + WINDOW] for i in range(0, len(permuted), WINDOW)]

    def order(self, epoch: int, window: int, rows: int) -> Int64:
        """Order of the rows of a window."""
        if not self.shuffle:
            return np.arange(rows)
        return np.random.default_rng([self.seed, epoch, window + 1]).permutation(rows)

    def identity(self) -> dict[str, Any]:
        """What the batches depend on besides epoch, k and rank."""
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "batch_size": self.batch_size,
            "world": self.world,
            "rows": self.rows,
        }


def _as_it_is(packed: Any) -> Any:
    return packed


class _Batches(TorchDataset[Packed]):
    """Batch k by index, packed for the way between processes; keeps the windows last read."""

    def __init__(self, dataset: Dataset, split: str, plan: _Plan, group_requests: bool) -> None:
        self.dataset, self.split, self.plan = dataset, split, plan
        self.group_requests = group_requests
        self.epoch = 0
        self.forget()

    def forget(self) -> None:
        """Drop what was read, before this object goes to worker processes."""
        self._assemble: Assembler | None = None
        self._epoch: int | None = None
        self._windows: list[list[Chunk]] = []
        self._ends = np.zeros(0, np.int64)
        self._kept: OrderedDict[int, tuple[Columns, Int64]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, k: int) -> Packed:
        return pack(self.make(k))

    def make(self, k: int) -> Batch:
        """Batch k of the epoch."""
        if self._assemble is None:
            self._assemble = Assembler(self.dataset, group_requests=self.group_requests)
        if self._epoch != self.epoch:
            self._epoch = self.epoch
            self._windows = self.plan.windows(self.epoch)
            self._ends = np.cumsum([sum(c.rows for c in w) for w in self._windows])
            self._kept.clear()
        position, end = self.plan.span(k)
        parts: list[Columns] = []
        while position < end:
            window = int(np.searchsorted(self._ends, position, side="right"))
            columns, order = self._window(window)
            first = int(self._ends[window]) - len(order)
            last = min(end, int(self._ends[window]))
            rows = order[position - first : last - first]
            parts.append({name: take(values, rows) for name, values in columns.items()})
            position = last
        joined = {name: concat([p[name] for p in parts]) for name in self._assemble.names}
        return self._assemble(joined)

    def _window(self, index: int) -> tuple[Columns, Int64]:
        if index not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            assert self._assemble is not None
            chunks = self._windows[index]
            columns = self.dataset.read(self.split, chunks, self._assemble.names)
            order = self.plan.order(self.epoch, index, sum(c.rows for c in chunks))
            self._kept[index] = (columns, order)
        self._kept.move_to_end(index)
        return self._kept[index]
