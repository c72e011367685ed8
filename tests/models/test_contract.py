"""What every model of MODELS must do; a new model adds no test to be accepted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kunlun.config import parse
from kunlun.features.batch import Batch, Jagged
from kunlun.models import MODELS, io
from kunlun.models.flops import count, lengths_of
from kunlun.models.head import multi_task_loss
from tests.models.flat import Flat, flat_inputs
from tests.models.samples import make_batch, make_schema

LENGTHS = {"click": [3, 0, 12, 1, 7], "view": [0, 0, 5, 12, 1]}


# options that bring code of their own into a backbone
OPTIONS = {
    "kunlun_softmax": ("kunlun", {"tower": {"ffn": {"kind": "softmax"}}}),
    "kunlun_sum": ("kunlun", {"tower": {"pooling": {"reduce": "sum"}}}),
    "kunlun_ages": ("kunlun", {"tower": {"ages": True}}),
    "interformer_sum": ("interformer", {"reduce": "sum"}),
}


@pytest.fixture(params=[*MODELS, *OPTIONS])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    name, section = OPTIONS.get(request.param, (request.param, {}))
    config_class, model_class = MODELS[name]
    torch.manual_seed(0)
    return model_class(make_schema(), parse(config_class, {"dim": 16, **section}, "test"))


def _batch(model: torch.nn.Module, lengths: dict[str, list[int]] = LENGTHS, seed: int = 0) -> Batch:
    return make_batch(model.schema, lengths, len(lengths["click"]), seed)


def _row(batch: Batch, i: int) -> Batch:
    """The batch that holds only row i."""
    index = torch.tensor([i])
    events = {}
    for kind, e in batch.events.items():
        part = slice(int(e.offsets[i]), int(e.offsets[i + 1]))
        events[kind] = type(e)(
            {k: v[part] for k, v in e.ids.items()}, e.numeric[part], e.timestamps[part],
            torch.tensor([0, part.stop - part.start]), e.max_len,
        )  # fmt: skip
    return Batch(
        {k: v[index] for k, v in batch.categorical.items()},
        {k: v.select(index) for k, v in batch.multi.items()},
        batch.numeric[index], events, None, batch.request_time[index], batch.labels[index],
        batch.weights[index], batch.group[index],
    )  # fmt: skip


def test_logits_are_float32_rows_by_tasks(model: torch.nn.Module) -> None:
    logits = model(_batch(model))
    assert logits.shape == (5, 2)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_batch_of_one_equals_its_row_in_a_batch(model: torch.nn.Module) -> None:
    batch = _batch(model)
    together = model(batch)
    for i in range(5):
        torch.testing.assert_close(model(_row(batch, i))[0], together[i], atol=1e-5, rtol=0)


def test_neighbours_do_not_matter(model: torch.nn.Module) -> None:
    batch, other = _batch(model), _batch(model, seed=1)
    kept = model(batch)[2]
    for kind, e in batch.events.items():  # rows 0, 1, 3, 4 get other contents, row 2 stays
        o, part = other.events[kind], slice(int(e.offsets[2]), int(e.offsets[3]))
        for name in e.ids:
            o.ids[name][part] = e.ids[name][part]
        o.numeric[part], o.timestamps[part] = e.numeric[part], e.timestamps[part]
    for name in batch.categorical:
        other.categorical[name][2] = batch.categorical[name][2]
    other.multi, other.numeric[2] = batch.multi, batch.numeric[2]
    torch.testing.assert_close(model(other)[2], kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[0, 0], [1, 0], [1, 1], [12, 12]], ids=str)
def test_any_history_length(model: torch.nn.Module, lengths: list[int]) -> None:
    batch = _batch(model, {"click": lengths, "view": lengths[::-1]})
    logits = model(batch)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    for name, p in model.named_parameters():
        grad = p.grad
        if grad is not None:
            values = grad.coalesce().values() if grad.is_sparse else grad
            assert torch.isfinite(values).all(), name


def test_every_parameter_gets_a_gradient(model: torch.nn.Module) -> None:
    batch = _batch(model)
    loss, _ = multi_task_loss(model(batch), batch.labels, batch.weights, torch.ones(2))
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} was never read"
        values = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
        assert values.abs().sum() > 0, f"{name} has a zero gradient"


def test_permuted_rows_give_permuted_logits(model: torch.nn.Module) -> None:
    batch = _batch(model)
    order = torch.tensor([4, 2, 0, 1, 3])
    rows = [_row(batch, int(i)) for i in order]
    parts = torch.cat([model(r) for r in rows])
    torch.testing.assert_close(parts, model(batch)[order], atol=1e-5, rtol=0)


def test_shared_requests_equal_repeated_ones(model: torch.nn.Module) -> None:
    batch = _batch(model)
    shared = copy.copy(batch)
    request = torch.tensor([2, 0, 2, 4, 4])
    expanded = copy.copy(batch)
    expanded.events = {
        kind: type(e)(
            {n: Jagged(v, e.offsets, 12).select(request).values for n, v in e.ids.items()},
            Jagged(e.numeric, e.offsets, 12).select(request).values,
            Jagged(e.timestamps, e.offsets, 12).select(request).values,
            Jagged(e.timestamps, e.offsets, 12).select(request).offsets, e.max_len,
        )
        for kind, e in batch.events.items()
    }  # fmt: skip
    shared.request = request
    torch.testing.assert_close(model(shared), model(expanded), atol=1e-5, rtol=0)


def test_flops_equal_the_flop_counter(model: torch.nn.Module) -> None:
    batch = _batch(model)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    planned = 5 * sum(row.flops for row in count(model, lengths_of(batch)))
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert sum(row.parameters for row in count(model, lengths_of(batch))) == sum(
        p.numel() for p in model.parameters()
    )


def test_bfloat16_autocast_stays_close(model: torch.nn.Module) -> None:
    batch = _batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, model(batch), atol=0.1, rtol=0.1)


def test_saved_and_loaded_model_is_the_same(model: torch.nn.Module, tmp_path) -> None:
    io.save(model, tmp_path)
    batch = _batch(model)
    assert torch.equal(io.load(tmp_path)(batch), model.eval()(batch))


def test_head_starts_at_the_base_rates(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.head.down.zero_()
    model.head.start_at([0.25, 0.9])
    rates = torch.sigmoid(model(_batch(model)))
    torch.testing.assert_close(rates, torch.tensor([[0.25, 0.9]]).expand(5, 2))


def test_backbone_compiles_whole_and_takes_other_shapes(model: torch.nn.Module) -> None:
    torch.compiler.reset()  # else all models share one count of recompilations, and its limit
    flat = Flat(model)
    compiled = torch.compile(flat, fullgraph=True, dynamic=True, backend="eager")
    for lengths in (LENGTHS, {"click": [0, 4, 9], "view": [12, 0, 3]}):
        inputs = flat_inputs(model, _batch(model, lengths))
        torch.testing.assert_close(compiled(*inputs), flat(*inputs), atol=1e-5, rtol=0)


def test_backbone_exports_with_any_number_of_rows_and_events(model: torch.nn.Module) -> None:
    flat, any_size = Flat(model), torch.export.Dim.DYNAMIC
    inputs = flat_inputs(model, _batch(model))
    kinds = len(flat.kinds)
    dynamic = ({0: any_size}, *([{0: any_size}] * kinds for _ in range(3)))
    program = torch.export.export(flat, inputs, dynamic_shapes=dynamic).module()
    for lengths in (LENGTHS, {"click": [0, 4, 9], "view": [12, 0, 3]}):
        inputs = flat_inputs(model, _batch(model, lengths))
        torch.testing.assert_close(program(*inputs), flat(*inputs), atol=1e-5, rtol=0)


def test_a_batch_without_rows_has_no_logits(model: torch.nn.Module) -> None:
    assert model(_batch(model, {"click": [], "view": []})).shape == (0, 2)
