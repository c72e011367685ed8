"""A tiny dataset, loader and model with the contracts of the real ones, fast enough to test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from kunlun import models
from kunlun.config import Config, parse
from kunlun.features.batch import Batch, EventSequence
from kunlun.features.schema import Schema
from kunlun.models.head import Head
from kunlun.training import source

USERS, ITEMS = 40, 30
HOUR = 3_600_000  # milliseconds


def make_schema(items: int = ITEMS) -> Schema:
    """Two tasks (buy only after a click), two id columns, one number, one event type."""
    return parse(
        Schema,
        {
            "tables": {"impressions": {"files": "x.parquet"}},
            "split": {"valid": "2024-01-02T00:00:00Z", "test": "2024-01-03T00:00:00Z"},
            "labels": {"click": {"truth": "p"}, "buy": {"given": "click", "weight": 0.5}},
            "features": {
                "user": {"role": "user", "kind": "categorical", "size": USERS, "dim": 4},
                "item": {"role": "item", "kind": "categorical", "size": items, "dim": 4},
                "price": {"role": "item", "kind": "numeric"},
            },
            "events": {"view": {"max_len": 5, "item_features": ["item"]}},
        },
        "standin",
    )


@dataclass
class Standin:
    """Dataset contract, in memory; the click probability is known."""

    schema: Schema = field(default_factory=make_schema)
    sizes: dict[str, int] = field(default_factory=lambda: {"train": 600, "valid": 200, "test": 300})
    manifest: dict[str, Any] = field(default_factory=dict)
    path: str = "nowhere"
    poison: int | None = None  # train row whose price is NaN

    def __post_init__(self) -> None:
        self.columns = {split: self._make(split, n) for split, n in self.sizes.items()}

    def _make(self, split: str, n: int) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(list(self.sizes).index(split))
        taste = np.random.default_rng(9).normal(size=(USERS, ITEMS)) + 0.5
        user, item = draw.integers(2, USERS, n), draw.integers(2, ITEMS, n)
        price = draw.normal(size=n)
        p = 1 / (1 + np.exp(-(0.5 * taste[user, item] + 2 * price)))
        click = (draw.random(n) < p).astype(np.float32)
        buy = np.where(click == 1, draw.random(n) < 0.3, np.nan).astype(np.float32)
        price[self.poison if self.poison is not None and split == "train" else []] = np.nan
        start = 1000 * list(self.sizes).index(split)  # splits are parts of one log
        return {"user": user, "item": item, "price": price.astype(np.float32), "click": click,
                "buy": buy, "truth.click": p, "length": draw.integers(0, 6, n),
                "row": start + np.arange(n)[::-1], "time": np.arange(n) * HOUR}  # fmt: skip

    def rows(self, split: str) -> int:
        return self.sizes[split]

    def column(self, split: str, name: str) -> np.ndarray:
        return self.columns[split][name]

    def ids(self, kind: str) -> pa.Array:
        return pa.array([f"{kind[0]}{i}" for i in range({"users": USERS, "items": ITEMS}[kind])])

    def batch(self, split: str, rows: np.ndarray) -> Batch:
        c = {name: torch.from_numpy(values[rows]) for name, values in self.columns[split].items()}
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
        offsets[1:] = torch.cumsum(c["length"], 0)
        total = int(offsets[-1])
        events = EventSequence(
            ids={"item": torch.arange(total) % ITEMS},
            numeric=torch.empty(total, 0),
            timestamps=torch.zeros(total, dtype=torch.int64),
            offsets=offsets,
            max_len=5,
        )
        return Batch(
            categorical={"user": c["user"], "item": c["item"]},
            multi={},
            numeric=c["price"][:, None],
            events={"view": events},
            request=None,
            request_time=c["time"],
            labels=torch.stack([c["click"], c["buy"]], dim=1),
            weights=torch.ones(len(rows)),
            group=c["user"],
        )


class _Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, dataset: Standin, split: str) -> None:
        self.dataset, self.split = dataset, split

    def __getitem__(self, rows: np.ndarray) -> Batch:
        return self.dataset.batch(self.split, rows)


class StandinLoader:
    """Loader contract: batch k is a function of (seed, epoch, k); state counts consumed batches."""

    def __init__(self, dataset, split, *, batch_size, shuffle=False, seed=0, workers=0) -> None:
        self.dataset, self.split, self.size = dataset, split, batch_size
        self.shuffle, self.seed, self.workers = shuffle, seed, workers
        self.epoch = self.consumed = 0

    def __len__(self) -> int:
        return -(-self.dataset.rows(self.split) // self.size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.consumed = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.consumed = state["epoch"], state["batch"]

    def __iter__(self):
        order = np.arange(self.dataset.rows(self.split))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        rows = [order[i : i + self.size] for i in range(0, len(order), self.size)]
        todo = rows[self.consumed :]
        source_ = _Batches(self.dataset, self.split)
        for batch in torch.utils.data.DataLoader(
            source_, batch_size=None, sampler=todo, num_workers=self.workers
        ):
            self.consumed += 1
            yield batch
        self.consumed = 0 if not self.shuffle else self.consumed


@dataclass(frozen=True, kw_only=True)
class TinyConfig(Config):
    hidden: int = 8
    dropout: float = 0.1  # so that random states matter


class _Embedding(nn.Module):
    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {n: nn.Embedding(*size, sparse=True) for n, size in schema.table_sizes.items()}
        )

    def forward(self, batch: Batch) -> Tensor:
        rows = [self.tables[name](batch.categorical[name]) for name in ("user", "item")]
        return torch.cat([rows[0] * rows[1], *rows, batch.numeric], dim=1)


class Tiny(nn.Module):
    """Batch -> logits [B, 2]."""

    def __init__(self, schema: Schema, config: TinyConfig) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        self.embedding = _Embedding(schema)
        self.backbone = nn.Sequential(
            nn.Linear(13, config.hidden), nn.ReLU(), nn.Dropout(config.dropout)
        )
        self.head = Head(1, config.hidden, config.hidden, len(schema.tasks))

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.backbone(self.embedding(batch))).float()


def install(dataset: Standin | None = None) -> Standin:
    """Put the stand-ins where training looks for data and models; returns the dataset."""
    dataset = dataset if dataset is not None else Standin()
    models.MODELS["tiny"] = (TinyConfig, Tiny)
    source.open_data = lambda name: dataset
    source.make_loader = lambda data, split, config, shuffle=False: StandinLoader(
        data, split, batch_size=config.batch_size, shuffle=shuffle, seed=config.seed,
        workers=config.workers,
    )  # fmt: skip
    return dataset
