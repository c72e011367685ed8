"""Rotary temporal embeddings: RoPE that also carries log-scaled time (paper 4.2, appendix B)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kunlun.config import Config
from kunlun.errors import ConfigError
from kunlun.ops.jagged import Jagged


@dataclass(frozen=True, kw_only=True)
class RoteConfig(Config):
    """mode "rote": position and log time; "rope": position only; "none": no rotation."""

    mode: Literal["rote", "rope", "none"] = "rote"
    base: float = 10000.0  # theta_i = base^(-2i / d_h)
    t_scale: float = 60.0  # seconds at which log time leaves its linear part
    gap: Literal["request", "previous"] = (
        "request"  # age at the request, or gap to the event before
    )

    def __post_init__(self) -> None:
        if self.base <= 0 or self.t_scale <= 0:
            raise ConfigError(
                f"time: base ({self.base}) and t_scale ({self.t_scale}) must exceed 0"
            )


class Rote(nn.Module):
    """Angles of every event: angle_i = pos * theta_i + log(1 + dt / t_scale) * phi_i.

    Positions count back from the newest event (0), so scores do not depend on how much of the
    history was cut off. phi starts at 2 pi 4^-i and is learned. Config: head width must be even.
    """

    theta: Tensor  # [d_h / 2]

    def __init__(self, head_dim: int, config: RoteConfig) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head width must be even to rotate pairs, got {head_dim}")
        self.config = config
        i = torch.arange(head_dim // 2, dtype=torch.float32)
        self.register_buffer("theta", config.base ** (-2 * i / head_dim), persistent=False)
        if config.mode == "rote":
            # learned as a logarithm: the frequencies span decades, one step size must fit all
            self.log_phi = nn.Parameter(math.log(2 * math.pi) - i * math.log(4.0))

    def forward(self, events: Jagged, age: Tensor) -> Tensor | None:
        """events (layout only) and age float64 [L] seconds -> angles float32 [L, d_h / 2]."""
        if self.config.mode == "none":
            return None
        segments = events.segments
        last = events.offsets.long()[1:][segments] - 1
        position = (last - torch.arange(age.shape[0], device=age.device)).to(torch.float32)
        angle = position[:, None] * self.theta
        if self.config.mode == "rote":
            dt = age if self.config.gap == "request" else _gap_to_previous(age, segments)
            dt = dt.to(torch.float32).clamp(min=0)  # clocks may disagree a little
            tau = torch.log1p(dt / self.config.t_scale)
            angle = angle + tau[:, None] * self.log_phi.exp()
        return angle


def _gap_to_previous(age: Tensor, segments: Tensor) -> Tensor:
    """Seconds since the event before, 0 for the first of a sequence; age [L] -> [L]."""
    gap = torch.zeros_like(age)
    gap[1:] = torch.where(segments[1:] == segments[:-1], age[:-1] - age[1:], 0.0)
    return gap
