"""How far pooling can go on the laboratory stream, and what attention adds.

    python benchmarks/synthetic_oracle.py --out benchmarks/results/synthetic_oracle.json

Both models are given the exact pooled part of the logit and are trained on the true p, so what
they miss is only the sequence part. `pooled` sees shrunk means, over each event type and two time
constants, of content, its products, Fourier features at a sharp bandwidth, categories and the
world's own item functions, and multiplies them with the candidate's. `attending` sees the last
events themselves through learned Gaussian kernels around the candidate. Head, samples and steps
are the same. Test users are not among the training users. Reported: expected normalised entropy.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from kunlun.data.synthetic import PRESETS, Lab, SyntheticConfig, make_lab
from kunlun.data.synthetic.measure import normalised_entropy
from kunlun.data.synthetic.simulate import Record, simulate
from kunlun.data.synthetic.timeline import make_timelines

POOL_HOURS = (8.0, 48.0)
WIDTH, KERNELS = 256, 48


@dataclass
class Samples:
    """Rows [N] in user order; histories newest first, item -1 where absent."""

    p: Tensor
    pooled_logit: Tensor
    item: Tensor
    placement: Tensor
    state: Tensor  # [N, types * hours * F] float16
    events: list[tuple[Tensor, Tensor, Tensor]]  # per type: item, age in hours, placement [N, W]


def item_features(lab: Lab) -> np.ndarray:
    """[I, F] what a pooled model may keep of an event."""
    world, rng = lab.world, np.random.default_rng(0)
    x = world.content
    a, b = np.triu_indices(x.shape[1])
    waves = x @ rng.normal(0, 3, (x.shape[1], 64)) + rng.uniform(0, 6.3, 64)  # bandwidth 1/3
    own = [world.sequence.g, np.eye(16)[world.category]]
    return np.concatenate([x, x[:, a] * x[:, b], np.cos(waves), *own], axis=1).astype(np.float32)


def draw(config: SyntheticConfig, lab: Lab) -> Samples:
    """Simulate `config.users` users of (seed, 4)."""
    line = make_timelines(config, np.random.default_rng([config.seed, 4]), config.users)
    record = Record(lab.world, config.users)
    outcome = simulate(lab.world, lab.fitted, line, record)
    phi, first = item_features(lab), config.burn_in
    users, steps = line.item.shape
    rate = 1 / (3.6e6 * np.array(POOL_HOURS, np.float32))
    gap = np.diff(line.time, axis=1, prepend=line.time[:, :1]).astype(np.float32)
    happened = [~outcome.click, outcome.click, outcome.conversion]
    total = np.zeros((users, 3, len(POOL_HOURS), phi.shape[1] + 1), np.float32)
    size = phi.shape[1] * 3 * len(POOL_HOURS)
    state = np.empty((users, steps - first, size), np.float16)
    for t in range(steps):
        total *= np.exp(-gap[:, t, None] * rate)[:, None, :, None]
        if t >= first:
            state[:, t - first] = (total[..., 1:] / (1 + total[..., :1])).reshape(users, -1)
        for e in range(3):
            total[happened[e][:, t], e, :, 0] += 1
            total[happened[e][:, t], e, :, 1:] += phi[line.item[happened[e][:, t], t], None]
    events = []
    for e, window in enumerate(config.windows):
        before = np.cumsum(happened[e], axis=1) - happened[e]
        at = np.argsort(~happened[e], axis=1, kind="stable")  # steps with the event first
        index = before[:, first:, None] - 1 - np.arange(window)
        step = np.take_along_axis(at, np.maximum(index, 0).reshape(users, -1), 1)
        values = [
            np.take_along_axis(a, step, 1).reshape(index.shape)
            for a in (line.item, line.time, line.placement)
        ]
        values[0] = np.where(index < 0, -1, values[0])
        values[1] = (line.time[:, first:, None] - values[1]) / 3.6e6
        item, age, placement = (torch.tensor(v.reshape(-1, window)) for v in values)
        events.append((item, age.float(), placement.float()))
    logit = record.pooled @ lab.fitted.pooled + np.float32(lab.fitted.bias)
    return Samples(
        p=torch.tensor(outcome.p_click[:, first:].reshape(-1)),
        pooled_logit=torch.tensor(logit.reshape(-1)),
        item=torch.tensor(line.item[:, first:].reshape(-1)),
        placement=torch.tensor(line.placement[:, first:].reshape(-1)).float(),
        state=torch.tensor(state.reshape(-1, size)),
        events=events,
    )


class Head(nn.Module):
    """Correction of the known pooled logit, from a history vector and the candidate."""

    def __init__(self, history: int, candidate: int) -> None:
        super().__init__()
        self.left = nn.Linear(history, WIDTH, bias=False)
        self.right = nn.Linear(candidate, WIDTH)
        self.deep = nn.Sequential(
            nn.Linear(history + candidate + WIDTH + 1, WIDTH), nn.GELU(),
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1),
        )  # fmt: skip

    def forward(self, history: Tensor, candidate: Tensor, pooled_logit: Tensor) -> Tensor:
        product = self.left(history) * self.right(candidate)
        z = torch.cat([history, candidate, product, pooled_logit[:, None]], dim=1)
        logit: Tensor = pooled_logit + self.deep(z).squeeze(1)
        return logit


class Pooled(nn.Module):
    """Shrunk means of many item functions, times functions of the candidate."""

    def __init__(self, features: Tensor, content: Tensor, state: int) -> None:
        super().__init__()
        self.features: Tensor
        self.register_buffer("features", features)
        self.head = Head(state, features.shape[1])

    def forward(self, s: Samples, rows: Tensor) -> Tensor:
        candidate = self.features[s.item[rows]]
        logit: Tensor = self.head(s.state[rows].float(), candidate, s.pooled_logit[rows])
        return logit


class Attending(nn.Module):
    """Gaussian kernels of learned widths around the candidate, over each type's last events."""

    def __init__(self, features: Tensor, content: Tensor, state: int) -> None:
        super().__init__()
        self.features: Tensor
        self.register_buffer("features", features)
        self.content: Tensor
        self.register_buffer("content", content)
        d = content.shape[1]
        self.plane = nn.Parameter(torch.randn(3, KERNELS, d, 2) * 2)
        self.rate = nn.Parameter(torch.full((3, KERNELS), -3.0))
        self.value = nn.Linear(features.shape[1], 3 * KERNELS)
        self.head = Head(3 * 3 * KERNELS, features.shape[1])

    def forward(self, s: Samples, rows: Tensor) -> Tensor:
        at = s.item[rows]
        values = self.value(self.features)
        read = []
        for e, (item, age, placement) in enumerate(s.events):
            present = (item[rows] >= 0).float()
            near = item[rows].clamp(min=0)
            delta = self.content[near] - self.content[at][:, None]  # [B, W, D]
            far = torch.einsum("bwd,kdc->bwkc", delta, self.plane[e]).square().sum(3)
            weight = torch.exp(-far - age[rows][..., None] * self.rate[e].exp())
            weight = weight * present[..., None]
            same = (placement[rows] - s.placement[rows][:, None]) % 4 == 0
            value = values[near][..., e * KERNELS : (e + 1) * KERNELS]
            total = weight.sum(1)
            mean = (weight * value).sum(1) / (0.3 + total)
            read += [torch.log1p(total), mean, (weight * same[..., None] * value).sum(1)]
        logit: Tensor = self.head(torch.cat(read, 1), self.features[at], s.pooled_logit[rows])
        return logit


def fit(kind: type[nn.Module], s: Samples, lab: Lab, train: int, epochs: int) -> float:
    """Train on the first rows, return the expected normalised entropy on the others."""
    torch.manual_seed(0)
    features = torch.tensor(item_features(lab))
    model = kind(features, torch.tensor(lab.world.content), s.state.shape[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    batch, steps = 512, epochs * (train // 512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    order = torch.cat([torch.randperm(train) for _ in range(epochs)])
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch].to(device)
        loss = binary_cross_entropy_with_logits(model(s, rows), s.p[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        rest = torch.arange(train, len(s.p), device=device).split(4096)
        q = torch.cat([model(s, rows).double().sigmoid() for rows in rest]).cpu().numpy()
    return normalised_entropy(s.p[train:].cpu().numpy(), np.clip(q, 1e-6, 1 - 1e-6))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="lab", choices=sorted(PRESETS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--kernels", nargs="+", default=["sharp"])
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for kernel in arguments.kernels:
        for share in arguments.shares:
            config = replace(
                PRESETS[arguments.preset],
                users=arguments.users, sequence_share=share, kernel=kernel,
            )  # fmt: skip
            begin, lab = time.time(), make_lab(config)
            samples = draw(config, lab)
            train = int(0.85 * config.users) * (config.steps - config.burn_in)
            p, z = samples.p[train:].numpy(), samples.pooled_logit[train:].double().sigmoid()
            row: dict[str, Any] = {
                "preset": arguments.preset,
                "kernel": kernel,
                "share": share,
                "rows": train,
            }
            row["floor"] = normalised_entropy(p)
            row["pooled_skills_alone"] = normalised_entropy(p, z.numpy())
            if torch.cuda.is_available():
                samples = to_device(samples)
            for kind in (Pooled, Attending):
                row[kind.__name__.lower()] = fit(kind, samples, lab, train, arguments.epochs)
            row["seconds"] = round(time.time() - begin)
            results.append(row)
            print(json.dumps(row), flush=True)
    if arguments.out:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, one thread"
        about = {"epochs": arguments.epochs, "users": arguments.users, "device": device}
        arguments.out.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


def to_device(s: Samples) -> Samples:
    """All rows onto the GPU."""
    return Samples(
        p=s.p.cuda(),
        pooled_logit=s.pooled_logit.cuda(),
        item=s.item.cuda(),
        placement=s.placement.cuda(),
        state=s.state.cuda(),
        events=[(a.cuda(), b.cuda(), c.cuda()) for a, b, c in s.events],
    )


if __name__ == "__main__":
    main()
