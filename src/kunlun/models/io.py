"""A model on disk: config.json (name, configuration, schema) and model.safetensors. No pickle."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kunlun.config import parse
from kunlun.errors import ConfigError, RunError
from kunlun.features.schema import Schema
from kunlun.models import MODELS


def resolve(section: Mapping[str, Any], source: str) -> tuple[type[nn.Module], Any]:
    """The class and the configuration that a `model:` section describes: `name` plus its keys.

    Raises ConfigError naming `source` and the key.
    """
    values = dict(section)
    name = values.pop("name", "kunlun")
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"{source}: model.name '{name}' does not exist; {hint}known: {', '.join(MODELS)}"
        )
    config_class, model_class = MODELS[name]
    return model_class, parse(config_class, values, f"{source}: model")


def build(schema: Schema, section: Mapping[str, Any], source: str) -> nn.Module:
    """The model of a `model:` section for this schema.

    Raises ConfigError naming `source`: as `resolve` does, or what does not go with the schema.
    """
    model_class, config = resolve(section, source)
    try:
        return model_class(schema, config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def name_of(model: nn.Module) -> str:
    """Its key in MODELS."""
    return next(name for name, (_, kind) in MODELS.items() if type(model) is kind)


def save(model: nn.Module, directory: Path) -> None:
    """Write config.json and model.safetensors; the directory is made if needed."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    about = {
        "model": name_of(model),
        "config": model.config.to_dict(),  # type: ignore[union-attr, operator]
        "schema": model.schema.to_dict(),  # type: ignore[union-attr, operator]
    }
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(about, indent=1))


def load(directory: Path | str) -> nn.Module:
    """The model that `save` wrote, on the CPU, in eval mode. Raises RunError naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    for file in ("config.json", "model.safetensors"):
        if not (directory / file).is_file():
            raise RunError(f"{directory / file}: no such file; a trained run keeps it in RUN/model")
    try:
        about = json.loads((directory / "config.json").read_text())
        section = {"name": about["model"], **about["config"]}
        schema = parse(Schema, about["schema"], str(directory / "config.json"))
    except (json.JSONDecodeError, KeyError) as error:
        raise RunError(f"{directory / 'config.json'}: not a saved model ({error})") from None
    model = build(schema, section, str(directory / "config.json"))
    try:
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise RunError(
            f"{directory / 'model.safetensors'}: torn or of another model ({line})"
        ) from None
    return model.eval()
