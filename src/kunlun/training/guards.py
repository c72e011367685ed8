"""Stop at the first loss or gradient that is not finite, and say where it came from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from kunlun.errors import NonFiniteError
from kunlun.features.batch import Batch, EventSequence, Jagged


def check_finite(
    model: nn.Module, batch: Batch, loss: Tensor, norm: Tensor, step: int, folder: Path
) -> tuple[float, float]:
    """Loss and norm as numbers. Raises NonFiniteError if they or any gradient are NaN or infinite.

    Call between backward and the optimizer step, while the weights are still good. norm: of the
    dense gradients; sparse ones are summed here. One transfer to the host per call.
    step: from 1. The batch is saved as `folder/nonfinite_step_*.safetensors`.
    """
    parts = [loss.detach().float(), norm.float()]
    parts += [
        p.grad._values().sum().float()  # NaN and inf survive a sum
        for p in model.parameters()
        if p.grad is not None and p.grad.is_sparse
    ]
    values: list[float] = torch.stack(parts).tolist()
    if all(map(math.isfinite, values)):
        return values[0], values[1]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"nonfinite_step_{step}.safetensors"
    save_batch(batch, file)
    raise NonFiniteError(step=step, module=_culprit(model, batch, loss), batch_file=file)


def _culprit(model: nn.Module, batch: Batch, loss: Tensor) -> str:
    """The first input, module or gradient that is not finite, as one short name."""
    for name, values in _floats(batch).items():
        if not bool(torch.isfinite(values).all()):
            return name
    if not bool(torch.isfinite(loss)):
        return _first_bad_module(model, batch) or "loss"
    # backward spreads a NaN towards the input: the last module in forward order started it
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    return f"gradient of {bad[-1]}" if bad else "gradient"


def _floats(batch: Batch) -> dict[str, Tensor]:
    """What the batch feeds in as numbers."""
    found = {"batch.numeric": batch.numeric, "batch.weights": batch.weights}
    for kind, events in batch.events.items():
        found[f"batch.events.{kind}.numeric"] = events.numeric
    return found


def _is_finite(grad: Tensor) -> bool:
    values = grad._values() if grad.is_sparse else grad
    return bool(torch.isfinite(values).all())


def _first_bad_module(model: nn.Module, batch: Batch) -> str | None:
    """Run the batch once more; the first module to finish with a non-finite output."""
    bad: list[str] = []

    def watch(name: str, _inputs: object, output: object) -> None:
        tensor = output.values if isinstance(output, Jagged) else output
        if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
            bad.append(name)

    handles = [
        module.register_forward_hook(lambda _m, i, o, name=name: watch(name, i, o))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return bad[0] if bad else None


def save_batch(batch: Batch, file: Path) -> None:
    """Write a batch as safetensors; `load_batch` reads it back."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    caps: dict[str, int] = {}
    for name in ("numeric", "request", "request_time", "labels", "weights", "group"):
        if getattr(batch, name) is not None:
            tensors[name] = getattr(batch, name)
    tensors |= {f"categorical/{name}": ids for name, ids in batch.categorical.items()}
    for name, layout in batch.multi.items():
        tensors |= {f"multi/{name}/values": layout.values, f"multi/{name}/offsets": layout.offsets}
        caps[f"multi/{name}"] = layout.max_len
    for kind, events in batch.events.items():
        caps[f"events/{kind}"] = events.max_len
        tensors |= {f"events/{kind}/ids/{name}": ids for name, ids in events.ids.items()}
        for name in ("numeric", "timestamps", "offsets"):
            tensors[f"events/{kind}/{name}"] = getattr(events, name)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, file, metadata={"max_len": json.dumps(caps)})


def load_batch(file: Path) -> Batch:
    """The batch that `save_batch` wrote, on the CPU."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        caps: dict[str, int] = json.loads(opened.metadata()["max_len"])
        flat = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def under(prefix: str) -> dict[str, Tensor]:
        return {n[len(prefix) :]: t for n, t in flat.items() if n.startswith(prefix)}

    multi = {
        name: Jagged(flat[f"multi/{name}/values"], flat[f"multi/{name}/offsets"], cap)
        for path, cap in caps.items()
        for group, _, name in [path.partition("/")]
        if group == "multi"
    }
    events = {
        kind: EventSequence(
            ids=under(f"events/{kind}/ids/"),
            numeric=flat[f"events/{kind}/numeric"],
            timestamps=flat[f"events/{kind}/timestamps"],
            offsets=flat[f"events/{kind}/offsets"],
            max_len=cap,
        )
        for path, cap in caps.items()
        for group, _, kind in [path.partition("/")]
        if group == "events"
    }
    return Batch(
        categorical=under("categorical/"),
        multi=multi,
        numeric=flat["numeric"],
        events=events,
        request=flat.get("request"),
        request_time=flat["request_time"],
        labels=flat["labels"],
        weights=flat["weights"],
        group=flat["group"],
    )
