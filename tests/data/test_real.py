"""The KuaiRand logs end to end; skipped where they are not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from kunlun.data.dataset import Dataset
from kunlun.data.loader import Loader
from kunlun.data.prepare import prepare
from kunlun.data.schema_file import load_schema

ROOT = Path(__file__).parents[2]
LOGS = Path(os.environ.get("KUNLUN_DATA", ROOT.parent / "shared" / "data"))
SCHEMAS = ROOT / "examples" / "kuairand"


def folder(name: str) -> Path:
    found = LOGS / name
    if not found.is_dir():
        pytest.skip(f"the logs {name} are not at {found}; set KUNLUN_DATA to the folder above")
    return found


def test_the_second_schema_only_adds() -> None:
    plain, more = (load_schema(SCHEMAS / f"{n}.yaml") for n in ("schema", "schema_counters"))
    names = list(more.features)
    assert names[: len(plain.features)] == list(plain.features)
    assert len(names) == len(plain.features) + 21
    features = {name: more.features[name] for name in plain.features}
    assert dataclasses.replace(more, features=features) == plain
    assert plain.tasks == ["click", "long_view"]


@pytest.mark.parametrize("schema", ["schema", "schema_counters"])
def test_sample500(tmp_path: Path, schema: str) -> None:
    root = folder("kuairand_pure_sample500")
    manifest = prepare(SCHEMAS / f"{schema}.yaml", tmp_path / "data", root=root)
    assert manifest["impressions"] == 3829
    assert manifest["users"] == 500
    dataset = Dataset.open(tmp_path / "data")
    for split in ("train", "valid", "test"):
        rows = 0
        for batch in Loader(dataset, split, batch_size=256, shuffle=True):
            rows += len(batch)
            assert bool(batch.numeric.isfinite().all())
            for events in batch.events.values():
                owner = np.repeat(np.arange(len(batch)), events.offsets.diff().numpy())
                assert bool((events.timestamps < batch.request_time[owner]).all())
        assert rows == manifest["splits"][split]["rows"]


def test_the_published_counts(tmp_path: Path) -> None:
    root = folder("kuairand_pure")
    manifest = prepare(SCHEMAS / "schema.yaml", tmp_path / "data", root=root)
    found = {
        name: (split["rows"], *(round(label["rate"], 4) for label in split["labels"].values()))
        for name, split in manifest["splits"].items()
    }
    assert found == {
        "train": (131_352, 0.4515, 0.3181),
        "valid": (35_703, 0.4523, 0.3203),
        "test": (26_640, 0.4342, 0.3029),
    }
    assert manifest["splits"]["test"]["users"] == 11_836
    entropies = [s["entropy"] for s in manifest["splits"]["test"]["labels"].values()]
    assert entropies == pytest.approx([0.68446, 0.61331], abs=2e-5)
    assert manifest["events"]["views"]["seeded"] == 817_187
    assert manifest["tables"]["user_id"]["size"] == 19_100
