"""Where a run stands: the numbers that, with the tensors, make a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counts over all resumes of a run; the window counts since the last log row."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # of the batch that comes next
    samples: int = 0
    seconds: float = 0.0  # in the loop, without validation and checkpoints
    waited: float = 0.0  # of these, blocked on the loader
    flops: float | None = None  # forward, per sample

    validated: int = 0  # step of the last validation
    stale: int = 0  # validations since the best one
    best_ne: float | None = None
    best_step: int | None = None
    valid: dict[str, Any] = field(default_factory=dict)  # metrics of the best
    stopped: str | None = None  # why it ended before all steps

    window_steps: int = 0
    window_loss: float = 0.0  # sums over the window's steps
    window_norm: float = 0.0
    window_start: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    # samples, seconds, waited at the last log row

    def count(self, samples: int, loss: float, norm: float) -> None:
        """Add one optimizer step."""
        self.step += 1
        self.samples += samples
        self.window_steps += 1
        self.window_loss += loss
        self.window_norm += norm

    def close_window(self) -> dict[str, float]:
        """Means over the steps since the last call, and how fast they went."""
        here = [float(self.samples), self.seconds, self.waited]
        samples, seconds, waited = (a - b for a, b in zip(here, self.window_start, strict=True))
        found = {
            "loss": self.window_loss / self.window_steps,
            "gradient_norm": self.window_norm / self.window_steps,
            "samples_per_s": samples / seconds,
            "data_wait": waited / seconds,  # share of the time
        }
        self.window_steps, self.window_loss, self.window_norm = 0, 0.0, 0.0
        self.window_start = here
        return found
