"""What a column is: the one file a user writes, and the contract between data and models.

A schema names the raw tables, the split by time, the labels, the features of a sample and the
event types whose histories a model reads. `kunlun data prepare` fits vocabularies and transforms
on the training days and writes the same schema back with every `size` filled in.

Ids of a categorical column: 0 = missing, 1 = out of vocabulary, 2.. = values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from kunlun.config import Config
from kunlun.errors import SchemaError
from kunlun.features.check import check

MISSING, UNKNOWN, FIRST_VALUE = 0, 1, 2  # ids every vocabulary reserves

Role = Literal["user", "item", "context", "event"]
Kind = Literal["categorical", "multi", "numeric", "timestamp", "counter"]
TimeUnit = Literal["s", "ms", "us"]


@dataclass(frozen=True, kw_only=True)
class Table(Config):
    """One raw table: Parquet or CSV, one file, a glob or a list; paths relative to the schema.

    impressions: user, item, time. events: user, item, time, type. users and items: key.
    """

    files: str | list[str]
    user: str | None = None
    item: str | None = None
    time: str | None = None
    type: str | None = None  # events: column that names the event type
    key: str | None = None  # users, items: the id column
    time_unit: TimeUnit = "ms"
    utc_offset: float | None = None  # hours ahead of UTC of its times without a zone; None: UTC,
    # and an error if other times of the logs have a zone


@dataclass(frozen=True, kw_only=True)
class Tables(Config):
    """The raw logs. users and items may be several tables sharing the same keys."""

    impressions: Table
    events: Table | None = None
    users: list[Table] = field(default_factory=list)
    items: list[Table] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Split(Config):
    """ISO times with offset; train is before `valid`, test ends before `end` (None: open)."""

    valid: str
    test: str
    start: str | None = None
    end: str | None = None


@dataclass(frozen=True, kw_only=True)
class Label(Config):
    """A binary task. `given` makes it conditional: NaN where the named label is not 1."""

    column: str | None = None  # default: the label's name
    given: str | None = None
    weight: float = 1.0  # of this task in the loss
    truth: str | None = None  # column with the true probability; only synthetic data has one


@dataclass(frozen=True, kw_only=True)
class Feature(Config):
    """One feature of a sample (user, item, context) or of an event.

    categorical: an id column, by vocabulary (min_count) or hashed (hash_buckets); part="first"
        takes the first of a list column, or of text split by `separator`.
    multi: a list column, or text split by `separator`; the last max_len ids, mean-pooled.
    numeric: a number, or with part="length" the length of a list column; transformed, fitted on
        train. With `buckets` it becomes a categorical of that many quantile buckets.
    timestamp: part "hour" or "weekday" (categorical, at utc_offset hours) of a time column
        (context without `column`: the impression's time), or "age": log1p of the seconds from it
        to the request, then as numeric.
    counter: smoothed rate of `label` and log1p of the number of impressions that share `keys` and
        have the label, strictly before the request minus `delay` seconds, then as numeric:
        (positives + strength * prior) / (count + strength), the prior being the rate in train.
        With `of` it counts events of that type, list histories included, instead of impressions,
        and `label` names the event type of the positives; keys are then user or item features.
    """

    role: Role
    kind: Kind
    column: str | None = None  # default: the feature's name
    dim: int = 16  # embedding width
    table: str | None = None  # features naming the same table share it; default: own
    size: int | None = None  # ids including the two reserved ones; filled by prepare
    hash_buckets: int | None = None
    min_count: int = 1
    missing: Literal["token", "value", "error"] | None = None  # None: error if numeric, else token
    fill: float = 0.0  # numeric with missing="value": what to put there
    transform: Literal["none", "log1p", "standardise", "quantile"] = "standardise"
    buckets: int | None = None
    separator: str | None = None
    max_len: int = 8  # multi
    part: Literal["hour", "weekday", "age", "length", "first"] | None = None
    utc_offset: float = 0.0  # hours, for hour and weekday
    keys: list[str] = field(default_factory=list)  # counter: features or raw columns
    label: str | None = None
    of: str | None = None
    strength: float = 20.0
    delay: float = 0.0
    token: str | None = None  # features with the same token are projected into one; default: own,
    # and one for all numeric features


@dataclass(frozen=True, kw_only=True)
class ListHistory(Config):
    """A list column of the users table that seeds a history: item ids, oldest first.

    `time` is the column with the time of the newest; the older ones get the same time.
    """

    column: str
    time: str
    time_unit: TimeUnit = "ms"


@dataclass(frozen=True, kw_only=True)
class EventType(Config):
    """A history: the last max_len events of these raw types strictly before the request."""

    max_len: int
    types: list[str] = field(default_factory=list)  # values of the type column; default: the name
    item_features: list[str] = field(default_factory=list)  # of role item, gathered per event
    features: dict[str, Feature] = field(default_factory=dict)  # the event's own columns
    lists: ListHistory | None = None


@dataclass(frozen=True)
class Input:
    """One column a model sees. A counter feature yields two (.rate, .count), a numeric feature
    with missing="token" a second one (.missing)."""

    name: str
    kind: Literal["categorical", "multi", "numeric"]
    feature_name: str
    feature: Feature

    @property
    def table(self) -> str:
        """Embedding table of a categorical or multi input."""
        return self.feature.table or self.name

    @property
    def token(self) -> str:
        """Inputs with the same token are projected into one; numbers share one by default."""
        return self.feature.token or ("numeric" if self.kind == "numeric" else self.name)


@dataclass(frozen=True, kw_only=True)
class Schema(Config):
    """The whole description; see the module."""

    tables: Tables
    split: Split
    labels: dict[str, Label]
    features: dict[str, Feature]
    events: dict[str, EventType] = field(default_factory=dict)
    group: str | None = None  # raw impressions column for GAUC; default: the user
    weight: str | None = None  # raw impressions column of sample weights

    def __post_init__(self) -> None:
        check(self)

    @property
    def tasks(self) -> list[str]:
        """Label names in order: the columns of `Batch.labels` and of the logits."""
        return list(self.labels)

    @cached_property
    def inputs(self) -> list[Input]:
        """What a model sees of a sample besides its histories, in schema order."""
        return _inputs(self.features)

    @cached_property
    def numeric(self) -> list[str]:
        """Names of the columns of `Batch.numeric`, in order."""
        return [i.name for i in self.inputs if i.kind == "numeric"]

    def event_inputs(self, event_type: str) -> list[Input]:
        """What a model sees of one event: item features first, then the event's own."""
        event = self.events[event_type]
        features = {name: self.features[name] for name in event.item_features}
        return _inputs(features) + _inputs(event.features)

    @cached_property
    def table_sizes(self) -> dict[str, tuple[int, int]]:
        """Embedding table -> (rows, width). Raises SchemaError if sharers disagree or no size."""
        sizes: dict[str, tuple[int, int]] = {}
        inputs = self.inputs + [i for kind in self.events for i in self.event_inputs(kind)]
        for entry in inputs:
            if entry.kind == "numeric":
                continue
            if entry.feature.size is None:
                raise SchemaError(f"{entry.feature_name}: no size yet; run `kunlun data prepare`")
            found = (entry.feature.size, entry.feature.dim)
            if sizes.setdefault(entry.table, found) != found:
                raise SchemaError(
                    f"table '{entry.table}': {entry.feature_name} has (size, dim) {found}, "
                    f"another feature {sizes[entry.table]}; sharers must agree"
                )
        return sizes


def _inputs(features: dict[str, Feature]) -> list[Input]:
    found: list[Input] = []
    for name, feature in features.items():
        if feature.kind == "counter":
            kind: Literal["categorical", "numeric"] = (
                "categorical" if feature.buckets else "numeric"
            )
            found += [Input(f"{name}.{part}", kind, name, feature) for part in ("rate", "count")]
        elif feature.kind == "multi":
            found.append(Input(name, "multi", name, feature))
        elif (
            feature.kind == "categorical" or feature.buckets or feature.part in ("hour", "weekday")
        ):
            found.append(Input(name, "categorical", name, feature))
        else:
            found.append(Input(name, "numeric", name, feature))
            if feature.missing == "token":
                found.append(Input(f"{name}.missing", "numeric", name, feature))
    return found
