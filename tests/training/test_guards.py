"""The first value that is not finite stops the run and is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from standin import Standin, Tiny, TinyConfig

from kunlun.errors import NonFiniteError
from kunlun.features.batch import Jagged
from kunlun.training import source
from kunlun.training.guards import check_finite, load_batch, save_batch
from kunlun.training.trainer import Trainer, train


@pytest.fixture
def model_and_batch():
    dataset = Standin()
    torch.manual_seed(0)
    return Tiny(dataset.schema, TinyConfig(dropout=0.0)), dataset.batch("train", np.arange(20))


def gradients(model, batch):
    loss = model(batch).square().mean()
    loss.backward()
    return loss, torch.nn.utils.get_total_norm(
        [p.grad for p in model.parameters() if not p.grad.is_sparse]
    )


def test_finite_values_come_back_as_numbers(model_and_batch, tmp_path):
    model, batch = model_and_batch
    loss, norm = gradients(model, batch)
    found = check_finite(model, batch, loss, norm, 1, tmp_path)
    assert found == (loss.item(), norm.item())
    assert not list(tmp_path.iterdir())


def test_a_bad_input_is_named_and_its_batch_saved(model_and_batch, tmp_path):
    model, batch = model_and_batch
    batch.numeric[3, 0] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"step 9: batch\.numeric is not finite; the batch"
    ) as e:
        check_finite(model, batch, *gradients(model, batch), 9, tmp_path)
    saved = load_batch(e.value.batch_file)
    assert torch.equal(saved.numeric.isnan(), batch.numeric.isnan())
    assert e.value.step == 9


def test_a_bad_weight_is_named_by_its_module(model_and_batch, tmp_path):
    model, batch = model_and_batch
    with torch.no_grad():
        model.backbone[0].weight[2] = torch.inf
    with pytest.raises(NonFiniteError, match=r"step 1: backbone\.0 is not finite"):
        check_finite(model, batch, *gradients(model, batch), 1, tmp_path)


@pytest.mark.parametrize("name", ["backbone.0.weight", "embedding.tables.item.weight"])
def test_a_bad_gradient_is_named_by_its_weight(model_and_batch, tmp_path, name):
    model, batch = model_and_batch
    loss, norm = gradients(model, batch)
    grad = model.get_parameter(name).grad
    (grad._values() if grad.is_sparse else grad).view(-1)[0] = torch.nan
    norm = norm if grad.is_sparse else norm * torch.nan
    with pytest.raises(NonFiniteError, match=f"gradient of {name} is not finite"):
        check_finite(model, batch, loss, norm, 1, tmp_path)


def test_of_many_bad_gradients_the_one_nearest_to_the_loss_is_named(model_and_batch, tmp_path):
    """As backward leaves them when backbone.0 starts it: everything before is NaN as well."""
    model, batch = model_and_batch
    loss, norm = gradients(model, batch)
    for name, parameter in model.named_parameters():
        if not name.startswith("head"):
            grad = parameter.grad
            (grad._values() if grad.is_sparse else grad).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"gradient of backbone\.0\.bias is not finite"):
        check_finite(model, batch, loss, norm * torch.nan, 1, tmp_path)


def test_clipping_does_not_hide_where_a_gradient_broke(data, config, tmp_path):
    trainer = Trainer(config(clip=1.0), tmp_path, source.open_data("standin"))
    weight = trainer.model.get_parameter("backbone.0.weight")
    weight.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(NonFiniteError, match=r"gradient of backbone\.0\.weight is not finite"):
        trainer._step(next(iter(trainer.loader)))


def test_a_saved_batch_is_the_same_batch(model_and_batch, tmp_path):
    _, batch = model_and_batch
    batch.multi = {"tags": Jagged(torch.arange(30), torch.arange(0, 31, 3)[:11], 8)}
    batch.request = torch.arange(20) // 2
    save_batch(batch, tmp_path / "b.safetensors")
    again = load_batch(tmp_path / "b.safetensors")
    for name in ("numeric", "request", "request_time", "labels", "weights", "group"):
        torch.testing.assert_close(getattr(again, name), getattr(batch, name), equal_nan=True)
    assert again.categorical.keys() == batch.categorical.keys()
    assert again.multi["tags"].max_len == 8
    assert torch.equal(again.multi["tags"].values, batch.multi["tags"].values)
    view, expected = again.events["view"], batch.events["view"]
    assert view.max_len == 5
    assert torch.equal(view.offsets, expected.offsets)
    assert torch.equal(view.ids["item"], expected.ids["item"])
    assert view.numeric.shape == expected.numeric.shape


def test_training_stops_before_the_weights_are_damaged(data, config, tmp_path, monkeypatch):
    poisoned = Standin(poison=77)
    monkeypatch.setattr(source, "open_data", lambda name: poisoned)
    seen = []
    original = Trainer._step

    def step(self, batch):
        try:
            original(self, batch)
        except NonFiniteError:
            seen.extend(p.detach().clone() for p in self.model.parameters())
            raise

    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(NonFiniteError, match=r"batch\.numeric .*nonfinite_step_\d+\.safetensors"):
        train(config(), out=tmp_path / "r", quiet=True)
    assert seen
    assert all(torch.isfinite(p).all() for p in seen)
