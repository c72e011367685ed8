"""Every tile size of window and seed attention, compiled for Hopper: nothing spills, all fits."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

from kunlun.ops.triton import SHARED_MEMORY
from tests.ops.aot import SHARED_LIMIT, argument_types, usage

window = import_module("kunlun.ops.window_attention.kernels")
seed = import_module("kunlun.ops.seed_attention.kernels")
interpreted = import_module("kunlun.ops.triton").interpreted()

pytestmark = pytest.mark.skipif(interpreted, reason="interpreted kernels cannot be compiled")
BAND = {"before": "i32", "after": "i32"}


class Configuration(NamedTuple):
    """A kernel with its compile-time arguments and launch settings."""

    kernel: Any
    dtype: str
    constants: dict[str, int]
    settings: dict[str, int]
    multiplies: bool = True

    @property
    def operator(self) -> str:
        return str(self.kernel.__module__.split(".")[-2])

    def __str__(self) -> str:
        module = self.operator.split("_")[0]
        sizes = "-".join(f"{k}{v}" for k, v in self.constants.items() if k != "WIDTH")
        return f"{module}-{self.kernel.__name__}-{self.dtype}-{sizes}"


def window_configurations(dtype: str, itemsize: int, width: int, channels: int) -> list:
    kernels = (window.forward_kernel, window.queries_kernel, window.keys_kernel)
    tiles = window.TABLES[itemsize, width]
    return [
        Configuration(kernel, dtype, tile.constants(channels), tile.settings())
        for kernel, tile in zip(kernels, tiles, strict=True)
    ]


def seed_configurations(dtype: str, itemsize: int, width: int, channels: int) -> list:
    table = seed.TABLES[itemsize, width]
    found = []
    for tile in dict.fromkeys((table.forward, table.many)):
        constants = seed.forward_constants(tile, channels)
        found.append(Configuration(seed.forward_kernel, dtype, constants, tile.settings()))
    tile, kernel = table.slices, seed.slices_kernel
    for rows in (16, 32, 64):  # as few seeds make them
        if rows <= tile.rows:
            constants = seed.slices_constants(tile._replace(rows=rows), channels, True)
            found.append(Configuration(kernel, dtype, constants, tile.settings()))
    constants = seed.slices_constants(tile, channels, False)
    found.append(Configuration(kernel, dtype, constants, tile.settings()))
    tile = table.keys
    found.append(Configuration(seed.keys_kernel, dtype, tile.constants(channels), tile.settings()))
    return found


def plain_configurations() -> list:
    settings = {"num_warps": 4, "num_stages": 3}  # Triton's defaults
    return [
        Configuration(seed.merge_kernel, "bf16", seed.merge_constants(128), settings, False),
        Configuration(seed.delta_kernel, "bf16", seed.delta_constants(128), settings, False),
    ]


def configurations() -> list:
    """Of each table the widest heads in bfloat16, and the widest of all in the other dtypes.

    Narrower heads are slow tests.
    """
    found = plain_configurations()
    for make in (window_configurations, seed_configurations):
        found += [*make("bf16", 2, 64, 64), *make("bf16", 2, 128, 128)]
        found += [*make("fp32", 4, 128, 128), *make("fp16", 2, 128, 128)]
        rest = [*make("fp32", 4, 64, 64), *make("bf16", 2, 64, 16), *make("bf16", 2, 64, 32)]
        rest += make("bf16", 2, 128, 100)
        found += [pytest.param(case, marks=pytest.mark.slow) for case in rest]
    return found


@pytest.fixture(scope="module", autouse=True)
def no_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles anew, into a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("case", configurations(), ids=str)
def test_attention_kernel_fits_hopper(case: Configuration, tmp_path: Path) -> None:
    types = argument_types(case.kernel, case.dtype)
    types |= {name: BAND[name] for name in types if name in BAND}
    launch = (case.settings["num_warps"], case.settings["num_stages"])
    used = usage(case.kernel, types, case.constants, *launch, tmp_path)
    print(used)
    assert used.spilled == used.stack == 0, used
    assert used.shared <= SHARED_MEMORY[case.operator] <= SHARED_LIMIT, used
    if case.multiplies and case.dtype != "fp32":  # which is multiplied without tensor cores
        assert used.hgmma > 0, used
        assert used.asynchronous > 0, used
