"""What this machine offers: versions, devices, the backend of every operator, missing extras."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from typing import Any

DISTRIBUTION = "kunlun-rec"


def describe() -> dict[str, Any]:
    """The answer of `kunlun doctor`, ready for JSON."""
    import torch

    from kunlun import __version__

    versions = {"kunlun": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) or "missing" for name in sorted(_requirements()[""])}
    devices: dict[str, Any] = {
        "cpu": f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.machine()}"
    }
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        devices[f"cuda:{i}"] = f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    if len(devices) == 1:
        devices["cuda"] = _why_no_cuda(torch.version.cuda)
    return {
        "versions": versions,
        "devices": devices,
        "operators": _operators(["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]),
        "extras": _extras(),
    }


def _why_no_cuda(built_with: str | None) -> str:
    if built_with is None:
        return "none: this torch is a CPU build"
    return f"none: torch was built for CUDA {built_with} and finds no device or driver"


def _operators(devices: list[str]) -> list[dict[str, str]]:
    from kunlun.ops.dispatch import OPERATORS, choose

    rows = []
    for operator in OPERATORS:
        for device in devices:
            choice = choose(operator, device=device)
            rows.append(
                {
                    "operator": operator,
                    "device": device,
                    "backend": choice.backend,
                    "why": choice.reason,
                }
            )
    return rows


def _extras() -> list[dict[str, Any]]:
    return [
        {
            "name": extra,
            "missing": sorted(name for name in names if _version(name) is None),
            "install": f"pip install '{DISTRIBUTION}[{extra}]'",
        }
        for extra, names in _requirements().items()
        if extra
    ]


def _requirements() -> dict[str, set[str]]:
    """Extra -> distributions it asks for; the plain dependencies under ''."""
    found: dict[str, set[str]] = {"": set()}
    for line in metadata.requires(DISTRIBUTION) or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if name is not None:
            found.setdefault(extra[1] if extra else "", set()).add(name[0])
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
