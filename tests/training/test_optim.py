"""Row-wise Adagrad against a dense reference, parameter groups, the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kunlun.training.config import TrainConfig
from kunlun.training.optim import Optimizers, RowWiseAdagrad, learning_rate_factor


def reference(weight, batches, lr, decay, eps=1e-8):
    """The equations, one row after another, on the summed gradient; float64."""
    weight, total = weight.double(), torch.zeros(len(weight), dtype=torch.float64)
    for ids, g in batches:
        for row in sorted(set(ids.tolist())):
            grad = g[ids == row].double().sum(0)
            total[row] += grad.square().mean()
            weight[row] *= 1 - lr * decay
            weight[row] -= lr * grad / (total[row].sqrt() + eps)
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_row_wise_adagrad_against_its_equations(decay):
    torch.manual_seed(0)
    table = nn.Embedding(50, 6, sparse=True)
    before = table.weight.detach().clone()
    optimizer = RowWiseAdagrad([table.weight], lr=0.1, weight_decay=decay)
    batches = [(torch.randint(0, 30, (40,)), torch.randn(40, 6)) for _ in range(3)]
    for ids, g in batches:
        optimizer.zero_grad()
        table(ids).backward(g)
        optimizer.step()
    expected = reference(before, batches, 0.1, decay)
    torch.testing.assert_close(table.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    used = torch.cat([ids for ids, _ in batches]).unique()
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, used, False)
    assert untouched.sum() >= 20
    assert torch.equal(table.weight[untouched], before[untouched])  # bit for bit
    assert optimizer.state[table.weight]["sum"][untouched].eq(0).all()


def test_row_wise_adagrad_with_no_rows_changes_nothing():
    table = nn.Embedding(5, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = RowWiseAdagrad([table.weight], lr=0.1, weight_decay=0.5)
    table(torch.empty(0, dtype=torch.int64)).sum().backward()
    optimizer.step()
    assert torch.equal(table.weight, before)


def test_row_wise_adagrad_refuses_dense_gradients():
    weight = nn.Parameter(torch.zeros(3, 2))
    weight.grad = torch.ones(3, 2)
    with pytest.raises(TypeError, match=r"takes sparse gradients: nn\.Embedding\(sparse=True\)"):
        RowWiseAdagrad([weight], lr=0.1).step()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4, sparse=True)
        self.up = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.bias = nn.Parameter(torch.zeros(3, 8))

    def forward(self, ids):
        return self.norm(self.up(self.table(ids))) + self.bias


def test_sparse_to_adagrad_matrices_decay_vectors_do_not():
    model = Model()
    optimizers = Optimizers(model, TrainConfig(weight_decay=0.3))
    assert list(optimizers.tables) == ["table.weight"]
    decayed = {id(p): g["weight_decay"] for g in optimizers.adam.param_groups for p in g["params"]}
    names = {name: decayed.get(id(p)) for name, p in model.named_parameters()}
    assert names == {
        "table.weight": None, "up.weight": 0.3, "up.bias": 0.0, "norm.weight": 0.0,
        "norm.bias": 0.0, "bias": 0.0,
    }  # fmt: skip


def test_clipping_is_for_dense_weights_only():
    model = Model()
    optimizers = Optimizers(model, TrainConfig(clip=0.5))
    (model(torch.tensor([1, 2, 2])).square().sum() * 1000).backward()
    sparse = model.table.weight.grad.coalesce().values().clone()
    norm = optimizers.norm()
    optimizers.clip(norm)
    grads = [p.grad for n, p in model.named_parameters() if n != "table.weight"]
    assert norm > 0.5
    assert torch.cat([g.flatten() for g in grads]).norm() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(model.table.weight.grad.coalesce().values(), sparse)


def test_state_survives_a_round_trip():
    def advance(model, optimizers, ids):
        optimizers.zero_grad()
        model(ids).square().sum().backward()
        optimizers.step(0.5)

    torch.manual_seed(0)
    one, two = Model(), Model()
    first = Optimizers(one, TrainConfig())
    advance(one, first, torch.tensor([1, 2, 3]))
    two.load_state_dict(one.state_dict())
    second = Optimizers(two, TrainConfig())
    second.load_state_tensors({n: t.clone() for n, t in first.state_tensors().items()})
    for model, optimizers in ((one, first), (two, second)):
        advance(model, optimizers, torch.tensor([3, 4, 4]))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("decay", "middle", "last"),
    [("linear", 0.55, 0.11), ("cosine", 0.55, 0.1002), ("none", 1.0, 1.0)],
)
def test_schedule_rises_then_decays_to_the_final_share(decay, middle, last):
    config = TrainConfig(warmup=0.1, decay=decay, final=0.1)
    factors = [learning_rate_factor(step, 100, config) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(middle)
    assert factors[99] == pytest.approx(last, abs=1e-3)
    assert max(factors) == 1.0


def test_both_optimizers_follow_the_schedule():
    optimizers = Optimizers(Model(), TrainConfig(lr=0.2, table_lr=0.4))
    optimizers.step(0.25)
    assert [g["lr"] for g in optimizers.adam.param_groups] == [0.05, 0.05]
    assert optimizers.adagrad.param_groups[0]["lr"] == 0.1


def test_no_warmup_starts_at_the_full_rate():
    assert learning_rate_factor(0, 10, TrainConfig(warmup=0.0)) == 1.0
    assert math.isfinite(learning_rate_factor(0, 1, TrainConfig(warmup=1.0)))
