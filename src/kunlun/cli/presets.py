"""The presets of the wheel, by the comment that opens each, and which of them name their data."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path


def presets() -> dict[str, str]:
    """Name -> first line of its file, without the comment sign."""
    from kunlun.training.config import presets as names

    folder = files("kunlun") / "presets"
    texts = {name: (folder / f"{name}.yaml").read_text() for name in names()}
    return {name: text.splitlines()[0].lstrip("# ") for name, text in texts.items()}


def names_data(preset_or_file: str, overrides: tuple[str, ...]) -> bool:
    """Whether the data of a run are given; yes for a preset that does not exist, which has its
    own error."""
    from kunlun.config import read_yaml

    if any(text.startswith("data=") for text in overrides):
        return True
    if Path(preset_or_file).is_file():
        return "data" in read_yaml(Path(preset_or_file))
    if preset_or_file not in presets():
        return True
    with as_file(files("kunlun") / "presets" / f"{preset_or_file}.yaml") as file:
        return "data" in read_yaml(file)
