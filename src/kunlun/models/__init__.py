"""Every model of the house: name -> (configuration, class)."""

from typing import Any

from torch import nn

from kunlun.models.kunlun import Kunlun, KunlunConfig

MODELS: dict[str, tuple[type[Any], type[nn.Module]]] = {"kunlun": (KunlunConfig, Kunlun)}
