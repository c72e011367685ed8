"""Kunlun: ranking models that read event histories.

The public names are loaded when they are first used, so that `import kunlun` and
`kunlun --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kunlun import layers, ops
    from kunlun.features.batch import Batch
    from kunlun.features.schema import Schema
    from kunlun.models import MODELS
    from kunlun.models.io import load
    from kunlun.models.kunlun import Kunlun, KunlunConfig
    from kunlun.ops.jagged import Jagged
    from kunlun.training.evaluate import evaluate
    from kunlun.training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "Batch",
    "Jagged",
    "Kunlun",
    "KunlunConfig",
    "Schema",
    "__version__",
    "evaluate",
    "layers",
    "load",
    "ops",
    "train",
]

_HOME = {
    "MODELS": "kunlun.models",
    "Batch": "kunlun.features.batch",
    "Jagged": "kunlun.ops.jagged",
    "Kunlun": "kunlun.models.kunlun",
    "KunlunConfig": "kunlun.models.kunlun",
    "Schema": "kunlun.features.schema",
    "evaluate": "kunlun.training.evaluate",
    "load": "kunlun.models.io",
    "train": "kunlun.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name in ("layers", "ops"):
        return import_module(f"kunlun.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'kunlun' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
