"""The dials of the laboratory stream, and the named settings people use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kunlun.config import Config
from kunlun.errors import ConfigError

CATEGORIES, SUBCATEGORIES = 16, 128  # nested: eight subcategories in each category
MAX_DAYS = 3650.0
MAX_CHUNK_USERS, MAX_CHUNK_STEPS = 4096, 360_448  # a chunk holds at most this many


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(Config):
    """One world and one population; equal configurations give equal bytes.

    Triples are per event type: impression without click, click, conversion.
    """

    users: int
    seed: int = 0
    items: int = 8192  # a multiple of 128
    latent: int = 4  # dimension of item content
    content: Literal["visible", "hidden"] = "visible"  # hidden: content only through item ids
    skills: int = 128  # pooled skills
    sequence_skills: int = 48  # skills that match the candidate against single events
    sequence_share: float = 0.5  # of the logit's variance, 0 to 0.9
    kernel: Literal["sharp", "smooth"] = "sharp"  # smooth ones are low rank: pooling learns them
    spectrum: float = 0.65  # skill k weighs k ** -spectrum
    steps: int = 88  # impressions a user
    burn_in: int = 40  # of these, the first are history only, not samples
    days: float = 10.0  # users begin within this many days of CALENDAR_START
    drift: float = 1.0  # 0 to 1: how far a user's interest in a topic swings over hours and weeks
    memory_hours: tuple[float, float, float] = (0.25, 8.0, 48.0)  # of the pooled states
    windows: tuple[int, int, int] = (20, 12, 6)  # last events that sequence skills look at
    history: tuple[int, int, int] = (40, 20, 10)  # max_len written into the schema
    base_rate: float = 0.25
    logit_sd: float = 2.0

    def __post_init__(self) -> None:
        for name in ("users", "latent", "skills", "sequence_skills"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.latent < 2:
            raise ConfigError(f"latent is {self.latent}; kernels need at least 2 dimensions")
        if self.items < SUBCATEGORIES or self.items % SUBCATEGORIES:
            raise ConfigError(f"items is {self.items}; it must be a multiple of {SUBCATEGORIES}")
        if not 0 <= self.sequence_share <= 0.9:
            raise ConfigError(f"sequence_share is {self.sequence_share}; expected 0 to 0.9")
        if not 0 <= self.burn_in < self.steps:
            raise ConfigError(f"burn_in is {self.burn_in}; expected 0 to steps - 1")
        if not 0 <= self.drift <= 1:
            raise ConfigError(f"drift is {self.drift}; expected 0 to 1")
        if not 0.01 <= self.base_rate <= 0.5 or not 0 < self.logit_sd <= 4:
            raise ConfigError("base_rate must be within 0.01 to 0.5, logit_sd above 0 and up to 4")
        if not 0 < self.days <= MAX_DAYS:
            raise ConfigError(f"days is {self.days}; expected more than 0 and at most {MAX_DAYS}")
        if min(self.windows) < 1 or min(self.history) < 1 or min(self.memory_hours) <= 0:
            raise ConfigError("windows, history and memory_hours must be positive")

    @property
    def samples(self) -> int:
        """Labelled impressions of the whole population."""
        return self.users * (self.steps - self.burn_in)

    @property
    def chunk_users(self) -> int:
        """Users a chunk; set by `steps` alone, so more users only append chunks."""
        return max(32, min(MAX_CHUNK_USERS, MAX_CHUNK_STEPS // self.steps))

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.users // self.chunk_users)

    def with_samples(self, samples: int) -> SyntheticConfig:
        """The same world with as few users as give at least so many labelled samples."""
        return replace(self, users=-(-samples // (self.steps - self.burn_in)))


# Lowest reachable normalised entropy of click: tiny .710, demo .671, lab .650, long .68; spectrum
# and speed in benchmarks/results/synthetic_presets.json. On lab, where test users have a floor of
# .640, pooled states reach .702 and attention .665 (benchmarks/results/synthetic_oracle.json).
PRESETS: dict[str, SyntheticConfig] = {
    # For tests: a few thousand samples in seconds.
    "tiny": SyntheticConfig(
        users=200, items=512, skills=16, sequence_skills=12, steps=60, burn_in=30, spectrum=1.0
    ),
    # Steep spectrum, few items: a small model gains visibly within two minutes on a CPU.
    "demo": SyntheticConfig(
        users=4000,
        items=1024,
        skills=24,
        sequence_skills=12,
        sequence_share=0.7,
        spectrum=1.0,
        history=(20, 12, 6),
    ),
    # Flat spectrum, many rough skills: quality keeps rising with compute.
    "lab": SyntheticConfig(users=100_000),
    # Histories of more than a thousand events, and skills that look that far back.
    "long": SyntheticConfig(
        users=1000,
        skills=48,
        sequence_skills=24,
        steps=1500,
        burn_in=1300,
        days=30.0,
        memory_hours=(8.0, 48.0, 336.0),
        windows=(512, 192, 64),
        history=(1024, 512, 128),
    ),
}
