"""`kunlun bench model`: training steps of one architecture, three ways, in one process.

    native     the model, its operators on the C++ library
    portable   the model as on a machine where that library was not built
    padded     the same weights over padded tensors, eager torch and SDPA (padded_model.py)

All three give the same logits and gradients before any is timed. A step is the trainer's: forward,
loss, backward, clipping, both optimizers. Each module that handles sequences is then timed alone on
inputs caught in a real forward; Amdahl's law on these shares and ratios predicts the speed-up of
the whole step, and the measured one is held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kunlun.bench import clock, modules
from kunlun.bench.backends import library
from kunlun.bench.batches import make_batch, make_schema
from kunlun.bench.ops import WrongResultError
from kunlun.bench.padded_model import PaddedKunlun
from kunlun.errors import ConfigError
from kunlun.features.batch import Batch
from kunlun.models import io
from kunlun.models.head import multi_task_loss
from kunlun.models.kunlun import Kunlun
from kunlun.ops import native
from kunlun.training.config import load_run_config
from kunlun.training.guards import check_finite
from kunlun.training.optim import Optimizers

WAYS = ("native", "portable", "padded")
LOGITS, GRADIENTS = 1e-4, 1e-3  # of the largest value; float32
HALF = 5e-2  # the same for logits in bfloat16
Say = Callable[[str], None]


class Setting(NamedTuple):
    """Rows of a batch; mean and longest history of every event type."""

    rows: int
    mean: int
    longest: int


SETTINGS = {"short": Setting(128, 66, 200), "long": Setting(16, 310, 1024)}


@dataclass
class Training:
    """What the three ways share: one model, one batch, one pair of optimizers."""

    model: Kunlun
    batch: Batch
    optimizers: Optimizers
    bf16: bool

    def autocast(self) -> Any:
        """The trainer's precision."""
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()

    def forward(self, way: str, batch: Batch) -> Tensor:
        """Logits [rows, tasks]."""
        call = PaddedKunlun(self.model) if way == "padded" else self.model
        with self.autocast():
            logits: Tensor = call(batch)
        return logits

    def step(self, way: str) -> None:
        """One step of the trainer, without its log."""
        self.optimizers.zero_grad()
        with library(way):
            loss = _loss(self.forward(way, self.batch), self.batch)
            loss.backward()
        norm = self.optimizers.norm()
        check_finite(self.model, self.batch, loss, norm, 0, Path())
        self.optimizers.clip(norm)
        self.optimizers.step(0.0)  # full work, and the weights stay comparable


def bench_model(
    *,
    preset: str = "base",
    settings: Sequence[str] = tuple(SETTINGS),
    precision: str | None = None,
    threads: int = 1,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """The report, ready for JSON (docs/benchmarks.md says what each key means).

    precision: fp32 or bf16; None is the preset's. Raises ConfigError for an unknown preset or
    setting, WrongResultError before anything is timed. Without the native library the way native
    has a row with the reason instead of figures.
    """
    for name in settings:
        if name not in SETTINGS:
            raise ConfigError(f"bench model: no setting '{name}'; known: {', '.join(SETTINGS)}")
    with clock.threads(threads):
        report: dict[str, Any] = {"conditions": clock.conditions(torch.device("cpu"))}
        report["conditions"]["memory"] = clock.Memory.how
        report["settings"] = []
        for name in settings:
            found = _measure(name, SETTINGS[name], preset, precision, say)
            report["settings"].append(found)
        report["conditions"]["load_after"] = clock.load()
    return report


def _measure(
    name: str, setting: Setting, preset: str, precision: str | None, say: Say
) -> dict[str, Any]:
    config = load_run_config(
        preset, ["data=none", *([f"train.precision={precision}"] if precision else [])]
    )
    torch.manual_seed(0)
    schema = make_schema(setting.longest)
    model = io.build(schema, config.model, preset)
    if not isinstance(model, Kunlun):
        raise ConfigError(f"bench model: preset '{preset}' is not of the model kunlun")
    model.train()
    batch = make_batch(schema, *setting, seed=0)
    training = Training(
        model, batch, Optimizers(model, config.train), config.train.precision == "bf16"
    )
    loaded = native.load()
    ways = [way for way in WAYS if way != "native" or loaded.library is not None]
    errors = _verify(training, make_batch(schema, min(8, setting.rows), *setting[1:], seed=1), ways)
    say(f"{name}: {len(ways)} ways agree within {max(errors.values()):.0e}")
    training.step("portable")  # makes the state of the optimizers, which is no way's
    peaks = {}
    for way in ways:  # also the warm-up
        training.optimizers.zero_grad()
        with clock.Memory(torch.device("cpu")) as memory:
            training.step(way)
        peaks[way] = None if memory.peak is None else memory.peak / 2**20
    timer = clock.stopwatch(torch.device("cpu"))[1]
    steps = clock.interleaved({way: partial(training.step, way) for way in ways}, timer, budget=0)
    training.optimizers.zero_grad()
    with torch.no_grad():
        caught = modules.catch(training.model, partial(training.forward, "portable", batch))
    runs = {
        (way, kind): partial(_alone, training, way, modules.calls(way, caught[kind]))
        for way in ways
        for kind in caught
    }
    for run in runs.values():
        run()
    alone = clock.interleaved(runs, timer, budget=0)
    rows = []
    for way in ways:
        row = {
            "way": way,
            "samples_per_s": setting.rows / steps[way].least,
            "step_ms": steps[way].least * 1e3,
            "median_step_ms": steps[way].median * 1e3,
            "repeats": steps[way].repeats,
            "peak_mb": peaks[way],
            "error": errors[way],
            "modules_ms": {kind: alone[way, kind].least * 1e3 for kind in caught},
        }
        if way != "padded":
            row["operator_shares"] = modules.operator_shares(partial(training.step, way), timer)
        rows.append(row)
        say(f"{name}: {way} {row['samples_per_s']:.1f} samples/s")
    longest = [int(e.offsets.diff().max()) for e in batch.events.values()]
    events = sum(int(e.offsets[-1]) for e in batch.events.values())
    return {
        "setting": name,
        "preset": preset,
        "precision": config.train.precision,
        **setting._asdict(),
        "events": events,
        "padded_rows": sum(longest) * setting.rows,
        "load": clock.load(),
        "ways": rows if "native" in ways else [{"way": "native", "skipped": loaded.reason}, *rows],
        "speed_ups": [
            compare(rows[i], rows[j]) for j in range(len(rows)) for i in range(j + 1, len(rows))
        ],
    }


def compare(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, Any]:
    """Measured speed-up of a step, and the one that Amdahl's law gives for its modules: each takes
    its measured share of the slow step, and shrinks by the ratio measured alone."""
    parts = {
        kind: {
            "share": slow["modules_ms"][kind] / slow["step_ms"],
            "ratio": slow["modules_ms"][kind] / fast["modules_ms"][kind],
        }
        for kind in slow["modules_ms"]
    }
    left = 1 - sum(part["share"] * (1 - 1 / part["ratio"]) for part in parts.values())
    measured = slow["step_ms"] / fast["step_ms"]
    return {
        "of": fast["way"],
        "over": slow["way"],
        "measured": measured,
        "predicted": 1 / left,
        "reached": measured * left,
        "modules": parts,
    }


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    weights = torch.ones(logits.shape[1])
    return multi_task_loss(logits, batch.labels, batch.weights, weights)[0]


def _verify(training: Training, batch: Batch, ways: list[str]) -> dict[str, float]:
    """Largest relative difference of logits and gradients from the portable path, in float32."""
    single = Training(training.model, batch, training.optimizers, bf16=False)
    found = {way: _answers(single, way) for way in ways}
    errors = {}
    for way in ways:
        distances = {
            name: _distance(value, found["portable"][name]) for name, value in found[way].items()
        }
        errors[way] = max(distances.values())
        for name, distance in distances.items():
            if not distance <= (LOGITS if name == "logits" else GRADIENTS):
                raise WrongResultError(
                    f"{way}: {name} is off by {distance:.1e} of its largest value against the "
                    "portable path; nothing is timed. Run pytest tests/models tests/ops"
                )
    if training.bf16:
        half = Training(training.model, batch, training.optimizers, bf16=True)
        for way in ways:
            with torch.no_grad(), library(way):
                logits = half.forward(way, batch)
            distance = _distance(logits, found["portable"]["logits"])
            if not distance <= HALF:
                raise WrongResultError(
                    f"{way}: logits in bfloat16 are off by {distance:.1e} of the largest against "
                    "float32; nothing is timed"
                )
    return errors


def _answers(training: Training, way: str) -> dict[str, Tensor]:
    """Logits and the gradient of every dense weight."""
    training.optimizers.zero_grad()
    with library(way):
        logits = training.forward(way, training.batch)
        _loss(logits, training.batch).backward()
    grads = {n: p.grad for n, p in training.optimizers.dense.items() if p.grad is not None}
    training.optimizers.zero_grad()
    return {"logits": logits.detach(), **grads}


def _distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max()) / (float(want.abs().max()) or 1.0)


def _alone(training: Training, way: str, calls: list[modules.Call]) -> None:
    """Forward and backward of every module of a kind."""
    for call in calls:
        with library(way):
            with training.autocast():
                out = call.run()
            torch.autograd.grad(out, call.leaves, torch.ones_like(out), allow_unused=True)
