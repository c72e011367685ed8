"""FeatureEmbedding against a loop over the fields, one sample at a time."""

from __future__ import annotations

import pytest
import torch

from kunlun.errors import SchemaError
from kunlun.features.embedding import EmbeddingTables, FeatureEmbedding
from kunlun.features.schema import Schema
from tests.models.samples import NOW, make_batch, make_schema

LENGTHS = {"click": [2, 0, 5], "view": [0, 1, 12]}


def test_tokens_against_a_loop_over_fields() -> None:
    schema = make_schema()  # fields of widths 3, 4, 8 and 16 on purpose: text order is another
    schema.features["user_id"].__dict__["dim"] = 16
    embedding = FeatureEmbedding(schema, 6, {"click": 8, "view": 4})
    batch = make_batch(schema, LENGTHS, 3)
    tokens, _ = embedding(batch)
    assert [f.token for f in embedding.fields] == ["user_id", "item_id", "hour", "tags", "numeric",
                                                   "ctr"][: len(embedding.fields)]  # fmt: skip
    for i, field in enumerate(embedding.fields):
        width = field.width(schema)
        weight = embedding.maps[str(width)][embedding.members[width].index(i)]
        for row in range(3):
            parts = []
            for entry in field.inputs:
                if entry.kind == "numeric":
                    column = schema.numeric.index(entry.name)
                    parts.append(batch.numeric[row, column : column + 1])
                    continue
                if entry.kind == "categorical":
                    ids = batch.categorical[entry.name][row : row + 1]
                else:
                    bag = batch.multi[entry.name]
                    ids = bag.values[bag.offsets[row] : bag.offsets[row + 1]]
                found = embedding.tables([(entry.table, ids)])[0]
                parts.append(found.mean(0) if len(ids) else torch.zeros(found.shape[1]))
            expected = torch.cat(parts) @ weight + embedding.bias[i]
            torch.testing.assert_close(tokens[row, i], expected)


def test_events_share_the_items_table_and_know_their_age() -> None:
    schema = make_schema()
    embedding = FeatureEmbedding(schema, 6, {"click": 8, "view": 4})
    batch = make_batch(schema, LENGTHS, 3)
    _, events = embedding(batch)
    s, age = events["click"]
    assert s.values.shape == (7, 8)
    assert s.max_len == 12
    torch.testing.assert_close(age, (NOW - batch.events["click"].timestamps).double() / 1000)
    event_input = schema.event_inputs("click")[0]
    assert embedding.tables.place[event_input.table] == embedding.tables.place["item_id"]


def test_ages_survive_millisecond_clocks() -> None:
    schema = make_schema()
    embedding = FeatureEmbedding(schema, 6, {"click": 8, "view": 4})
    batch = make_batch(schema, LENGTHS, 3)
    batch.events["click"].timestamps[:] = NOW - 1  # float32 could not tell NOW from NOW - 1
    _, events = embedding(batch)
    torch.testing.assert_close(events["click"][1], torch.full((7,), 0.001, dtype=torch.float64))


def test_tables_of_one_width_lie_in_one_weight_without_overlap() -> None:
    tables = EmbeddingTables({"a": (3, 4), "b": (5, 4), "c": (2, 8)})
    assert {k: tuple(w.weight.shape) for k, w in tables.weights.items()} == {
        "4": (8, 4),
        "8": (2, 8),
    }
    a, c, b = tables(
        [("a", torch.tensor([2])), ("c", torch.tensor([[1, 0]])), ("b", torch.tensor([0]))]
    )
    assert torch.equal(a[0], tables.weights["4"].weight[2])
    assert torch.equal(b[0], tables.weights["4"].weight[3])
    assert c.shape == (1, 2, 8)


def test_sharers_of_a_table_must_agree() -> None:
    schema = make_schema()
    schema.features["user_id"].__dict__["table"] = "item_id"
    with pytest.raises(SchemaError, match=r"table 'item_id'.*sharers must agree"):
        FeatureEmbedding(Schema(**vars(schema)), 6, {"click": 8, "view": 4})
