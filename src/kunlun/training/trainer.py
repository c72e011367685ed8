"""Training: one loop, from the first batch to the evaluated run directory.

    stream of batches -> loss -> gradients -> (finite?) -> two optimizers
    every so often: validate, keep the best model, checkpoint

Same seed, same run, with any number of workers and after any resume; on a CPU bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kunlun.errors import RunError
from kunlun.features.batch import Batch
from kunlun.metrics import ne
from kunlun.models import flops, io
from kunlun.models.head import multi_task_loss
from kunlun.training import checkpoint, environment, rundir, source
from kunlun.training.average import Average
from kunlun.training.config import RunConfig
from kunlun.training.evaluate import metrics_on_test
from kunlun.training.guards import check_finite
from kunlun.training.interrupt import Interrupted, interrupts
from kunlun.training.optim import Optimizers, learning_rate_factor
from kunlun.training.progress import Progress
from kunlun.training.runlog import RunLog, write_json
from kunlun.training.scoring import mean_ne, score, tasks_with_ne


def train(
    config: RunConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dataset: Any = None,
    quiet: bool = False,
    test: bool = True,
) -> Path:
    """Train, keep the best model by validation NE, evaluate it on test; returns the run directory.

    out: default runs/<config.name>. resume: go on from the newest whole checkpoint (or start, if
    there is none); a finished run is returned as it is. dataset: instead of opening config.data.
    test: False leaves the test split unread, and its metrics out of summary.json.
    Raises RunError (directory), DataError (no samples), NonFiniteError, and KeyboardInterrupt after
    Ctrl-C, with a checkpoint written (a second Ctrl-C does not wait for it).
    """
    run = out if out is not None else Path("runs") / config.name
    if resume and rundir.is_finished(run, config):
        return run
    place = rundir.resume_point(run, config, resume=resume, overwrite=overwrite)
    if dataset is None:
        dataset = source.open_data(config.data)
    if place is not None:
        source.check_same_data(run, dataset)
    trainer = Trainer(config, run, dataset)  # what is wrong with data, model or checkpoint shows up
    step = trainer.restore(place) if place is not None else None  # before anything is written
    rundir.begin(run, config, fresh=place is None)
    write_json(run / "env.json", trainer.environment())
    with RunLog(run, trainer.total, resume_step=step, quiet=quiet) as log:
        trainer.warn_of_bf16(log)
        with interrupts() as asked:
            trainer.fit(log, asked)
        trainer.finish(log, test=test)
    return run


class Trainer:
    """The state of a run in training; `train` drives it."""

    def __init__(self, config: RunConfig, run: Path, dataset: Any) -> None:
        source.need_train_rows(dataset)
        self.config, self.run, self.dataset = config, run, dataset
        settings = self.settings = config.train
        self.device = environment.pick_device(settings.device)
        self.bf16 = settings.precision == "bf16"
        torch.manual_seed(settings.seed)
        self.schema = dataset.schema
        self.model = io.build(self.schema, config.model, config.name)
        self.model.head.start_at(source.base_rates(dataset))  # type: ignore[union-attr, operator]
        self.model.to(self.device)
        if settings.compile:
            self.model.backbone.compile(dynamic=True)  # type: ignore[union-attr]
        self.optimizers = Optimizers(self.model, settings)
        self.average = Average(self.optimizers.dense, settings.ema)
        self.loader = source.make_loader(dataset, "train", settings, shuffle=True)
        self.validation = source.make_loader(dataset, "valid", settings)
        steps = math.ceil(settings.epochs * len(self.loader))
        self.total = min(steps, settings.max_steps or steps)
        self.evaluate_every = math.ceil(settings.evaluate_every * len(self.loader))
        self.checkpoint_every = settings.checkpoint_every or self.evaluate_every
        weights = [self.schema.labels[task].weight for task in self.schema.tasks]
        self.task_weights = torch.tensor(weights, device=self.device)
        self.progress, self.saved = Progress(), 0
        self.sums = torch.zeros(len(weights), 4, dtype=torch.float64, device=self.device)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.peak = environment.peak_flops(self.device, dtype)

    def environment(self) -> dict[str, Any]:
        """What env.json holds: machine, versions, peak FLOP/s, hashes of the data."""
        about = environment.describe(self.device) | {"peak_flops": self.peak}
        return about | {"data": source.fingerprint(self.dataset)}

    def warn_of_bf16(self, log: RunLog) -> None:
        """A CPU without bfloat16 instructions takes many times as long as in float32."""
        if self.bf16 and self.device.type == "cpu":
            gain = self.peak / environment.peak_flops(self.device, torch.float32)
            if gain < 0.8:  # both are timed, so equal ones differ a little
                log.say(
                    f"this CPU multiplies bfloat16 at {gain:.0%} of the speed of float32; "
                    "train.precision=fp32 is likely faster here"
                )

    def fit(self, log: RunLog, asked: threading.Event) -> None:
        """The loop. On Ctrl-C a checkpoint is written and KeyboardInterrupt raised."""

        def stop_if_asked() -> None:
            if asked.is_set():
                raise Interrupted

        stream = self._stream(asked)
        try:
            while True:
                now = self.progress
                if now.step and self._due(self.evaluate_every) and now.validated < now.step:
                    self._validate(log, stop_if_asked)
                if now.step > self.saved and self._due(self.checkpoint_every):
                    self.save()
                if now.step >= self.total or now.stopped:
                    stop_if_asked()
                    return
                started = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - started
                self._step(batch)
                now.seconds += time.perf_counter() - started
                now.waited += waited
                self._log(log)
                stop_if_asked()
        except Interrupted:  # not any KeyboardInterrupt: a second Ctrl-C may hit half an update
            log.say(f"interrupted; {self.save()} is written, go on with --resume")
            raise

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step >= self.total

    def _stream(self, asked: threading.Event) -> Iterator[Batch]:
        """Batches without end, epoch after epoch; the loader knows how many were consumed."""
        while True:
            try:
                yield from self.loader
            except RuntimeError:
                if asked.is_set():  # Ctrl-C reaches loader processes as well and may end them first
                    raise Interrupted from None
                raise
            self.progress.epoch += 1
            self.loader.set_epoch(self.progress.epoch)

    def _step(self, batch: Batch) -> None:
        """Forward, backward, update, and what the log row will need."""
        now, batch = self.progress, environment.to_device(batch, self.device)
        if now.flops is None:
            now.flops = self._flops(batch)
        # dropout is a function of (seed, step): loaders draw from the global generator as they
        # start, so a saved state would not survive a resume or another number of workers
        torch.manual_seed((self.settings.seed * 1_000_003 + now.step) % 2**63)
        self.model.train()
        self.optimizers.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(batch)
        loss, _ = multi_task_loss(logits, batch.labels, batch.weights, self.task_weights)
        loss.backward()
        norm = self.optimizers.norm()
        values = check_finite(self.model, batch, loss, norm, now.step + 1, self.run)
        self.optimizers.clip(norm)  # not before: it would spread one NaN over all gradients
        self.optimizers.step(learning_rate_factor(now.step, self.total, self.settings))
        self.average.update(now.step)
        self.sums += ne.sums(logits.detach(), batch.labels, batch.weights)
        now.count(len(batch), *values)

    def _log(self, log: RunLog) -> None:
        """A row of metrics.jsonl every `log_every` steps, over the steps since the last one."""
        now = self.progress
        log.moved(now.step)
        if now.step % self.settings.log_every and now.step != self.total:
            return
        factor = learning_rate_factor(now.step - 1, self.total, self.settings)
        scores = [ne.normalized_entropy(row) for row in self.sums.tolist()]
        row = now.close_window()
        log.write(
            {
                "kind": "train",
                "step": now.step,
                "epoch": now.step / len(self.loader),
                "samples": now.samples,
                "ne": {t: s.value for t, s in zip(self.schema.tasks, scores, strict=True)},
                "lr": self.settings.lr * factor,
                "table_lr": self.settings.table_lr * factor,
                **row,
                "mfu": self._mfu(row["samples_per_s"]),
                "seconds": now.seconds,
            }
        )
        self.sums.zero_()

    def _validate(self, log: RunLog, stop_if_asked: Callable[[], None]) -> None:
        """Score the valid split; keep the model in model/ if its mean NE is the best so far."""
        now = self.progress
        with self.average.applied():
            scored = score(
                self.model, self.validation, self.device,
                tasks=len(self.schema.tasks), bf16=self.bf16, after_batch=stop_if_asked,
            )  # fmt: skip
            metrics = scored.metrics(self.schema.tasks).compute()
            tasks = tasks_with_ne(metrics, now.valid)
            value, best = mean_ne(metrics, tasks), mean_ne(now.valid, tasks)
            better = value is not None and (best is None or value < best)
            if better or now.best_ne is None:  # without any NE, the newest model is the best
                io.save(self.model, self.run / ".writing_model")
                checkpoint.move_in(self.run / ".writing_model", self.run / "model")
                now.best_ne, now.best_step, now.valid, now.stale = value, now.step, metrics, 0
            else:
                now.stale += 1
        now.validated = now.step
        if self.settings.patience is not None and now.stale >= self.settings.patience:
            now.stopped = f"no better validation NE in {now.stale} validations"
        if len(scored.labels):
            where = {"step": now.step, "samples": now.samples, "seconds": now.seconds}
            log.write({"kind": "valid", **where, "ne": value, "tasks": metrics})

    def save(self) -> Path:
        """Write a checkpoint of this very moment."""
        self.saved = self.progress.step
        groups = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizers.state_tensors(),
            "average": self.average.means,
            "train": {"sums": self.sums},
        }
        tensors = {f"{g}:{name}": t for g, values in groups.items() for name, t in values.items()}
        state = {
            "progress": dataclasses.asdict(self.progress),
            "loader": self.loader.state_dict(),
        }
        folder = self.run / "checkpoints"
        return checkpoint.save(
            folder, self.progress.step, tensors, state, self.settings.keep_checkpoints
        )

    def restore(self, place: Path) -> int:
        """Continue from a checkpoint; returns its step."""
        flat, state = checkpoint.load(place)
        groups: dict[str, dict[str, Tensor]] = {}
        for path, tensor in flat.items():
            group, _, name = path.partition(":")
            groups.setdefault(group, {})[name] = tensor
        try:
            self.model.load_state_dict(groups["model"])
            self.optimizers.load_state_tensors(groups.get("optimizer", {}))
            self.average.load(groups.get("average", {}))
            self.sums.copy_(groups["train"]["sums"])
            self.progress = Progress(**state["progress"])
        except torch.OutOfMemoryError:
            raise
        except (KeyError, RuntimeError, TypeError) as error:
            why = " ".join(str(error).split())[:200]
            raise RunError(
                f"{place}: does not fit this version of kunlun ({why}); go on with the one that "
                "wrote it, or start a run with another name="
            ) from None
        self.saved = self.progress.step
        self.loader.set_epoch(self.progress.epoch)
        self.loader.load_state_dict(state["loader"])
        return self.progress.step

    def finish(self, log: RunLog, *, test: bool = True) -> None:
        """Evaluate the best model on test, if asked for, and write summary.json."""
        now = self.progress
        if now.stopped:
            log.say(f"stopped at step {now.step}: {now.stopped}")
        on_test = metrics_on_test(self.run, self.dataset, str(self.device)) if test else {}
        tables = sum(p.numel() for p in self.optimizers.tables.values())
        dense = sum(p.numel() for p in self.optimizers.dense.values())
        speed = now.samples / now.seconds
        summary = {
            "valid": now.valid,
            "test": on_test,
            "train": {
                "samples": now.samples, "samples_per_s": speed, "flops_per_sample": now.flops,
                "mfu": self._mfu(speed), "data_wait": now.waited / now.seconds,
                "seconds": now.seconds, "steps": now.step, "best_step": now.best_step,
                "stopped": now.stopped,
            },
            "model": {
                "name": io.name_of(self.model), "params": tables + dense,
                "embedding_params": tables,
            },
        }  # fmt: skip
        write_json(self.run / "summary.json", summary)
        for task, values in on_test.items():
            numbers = (values[k] for k in ("ne", "auc", "calibration", "base_rate"))
            ne_, auc, calibration, base = ("-" if v is None else f"{v:.4f}" for v in numbers)
            log.say(f"test  {task}: NE {ne_} (base rate {base})  AUC {auc}  p/y {calibration}")
        log.say(f"run: {self.run}")

    def _flops(self, batch: Batch) -> float | None:
        """Forward FLOPs per sample at this batch's history lengths; None: no formulas."""
        try:
            return sum(row.flops for row in flops.count(self.model, flops.lengths_of(batch)))
        except TypeError:
            return None

    def _mfu(self, samples_per_s: float) -> float | None:
        """Share of the peak in use; backward costs twice the forward."""
        flops_ = self.progress.flops
        return None if flops_ is None else 3 * flops_ * samples_per_s / self.peak
