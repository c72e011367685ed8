"""Every tile size that ships, compiled for sm_90: registers, shared memory, matrix instructions.

No GPU is needed. What no compiler can say, how fast it runs, stands in benchmarks/gpu.sh.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is for Linux")

from kunlun.ops.gdpa import kernels as gdpa_kernels  # noqa: E402
from kunlun.ops.triton import SHARED_MEMORY  # noqa: E402
from kunlun.ops.triton.activations import CODES  # noqa: E402
from kunlun.ops.triton.tiles import INTERPRETED, Tiles, list_tiles  # noqa: E402
from tests.ops.aot import SHARED_LIMIT, argument_types, usage  # noqa: E402

pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be compiled")


# Share of a kernel's instructions that may spill. Tiles were chosen under the Triton that torch
# brings along; 3.9 places values otherwise and spills a few of one kernel.
SPILLED = 0.01 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 0.0


@pytest.fixture(scope="module", autouse=True)
def no_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles anew, into a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def gdpa(size: int, width: int, activations: str = "gelu_approx") -> list[object]:
    """(dtype, kernel, tiles, compile-time arguments) of everything that runs heads of `width`."""
    acts = sum(1 << CODES[name] for name in activations.split(","))
    table = gdpa_kernels.TABLES[size, 64 if width <= 64 else 128]
    found: dict[str, tuple[object, Tiles, dict[str, object]]] = {}
    buckets = gdpa_kernels.forward_tiles(table, acts)
    for b, tiles in enumerate(buckets):
        resident = b < len(buckets) - 1
        constants = gdpa_kernels.forward_constants(tiles, resident, width, acts)
        found[f"forward{b}"] = gdpa_kernels.forward_kernel, tiles, constants
    for b, tiles in enumerate(table.whole):
        constants = gdpa_kernels.keys_constants(tiles, True, width, acts)
        found[f"whole{b}"] = gdpa_kernels.keys_kernel, tiles, constants
    constants = gdpa_kernels.keys_constants(table.keys, False, width, acts)
    found["keys"] = gdpa_kernels.keys_kernel, table.keys, constants
    constants = gdpa_kernels.constants(table.queries, width, acts)
    found["queries"] = gdpa_kernels.queries_kernel, table.queries, constants
    dtype = {2: "bf16", 4: "fp32"}[size]
    return [
        pytest.param(dtype, *rest, id=f"{dtype}-D{width}-{name}") for name, rest in found.items()
    ]


GDPA = [case for key in gdpa_kernels.TABLES for case in gdpa(*key)]


@pytest.mark.parametrize(("dtype", "kernel", "tiles", "constants"), GDPA)
def test_gdpa_tiles_fit_hopper(
    dtype: str,
    kernel: triton.JITFunction,
    tiles: Tiles,
    constants: dict[str, object],
    tmp_path: Path,
) -> None:
    types = argument_types(kernel, dtype)
    used = usage(kernel, types, constants, tiles.warps, tiles.stages, tmp_path)
    print(used)  # -rP shows it
    assert used.spilled_in_loop <= SPILLED * used.instructions
    assert used.shared <= SHARED_MEMORY["gdpa"] <= SHARED_LIMIT
    assert used.programs >= tiles.programs
    if dtype == "bf16":
        assert used.spilled <= SPILLED * used.instructions
        assert used.hgmma > 0
        assert used.hmma == 0


@pytest.mark.parametrize(
    ("dtype", "kernel", "tiles", "constants"), gdpa(2, 24, "fast_gelu,fast_silu,gelu,relu")
)
def test_gdpa_narrow_heads_of_several_activations_compile(
    dtype: str,
    kernel: triton.JITFunction,
    tiles: Tiles,
    constants: dict[str, object],
    tmp_path: Path,
) -> None:
    types = argument_types(kernel, dtype)
    used = usage(kernel, types, constants, tiles.warps, tiles.stages, tmp_path)
    assert used.spilled <= SPILLED * used.instructions
    assert used.hgmma > 0
    assert used.hmma == 0


def test_gdpa_sum_of_slices_compiles(tmp_path: Path) -> None:
    kernel = gdpa_kernels.sum_kernel
    types = argument_types(kernel, "bf16")
    used = usage(kernel, types, {"BN": 128, "D": 128, "WIDTH": 128}, 8, 3, tmp_path)
    assert used.spilled == 0


@pytest.mark.parametrize("buckets", [1, 4])
def test_work_list_compiles(buckets: int, tmp_path: Path) -> None:
    types = dict.fromkeys(("offsets", "work", "bucket_by"), "*i64")
    types |= {"items": "*i32", **dict.fromkeys(("samples", "tile", "bound", "stride"), "i32")}
    constants = {"BUCKETS": buckets, "AT_LEAST_ONE": True, "BLOCK": 64}
    used = usage(list_tiles, types, constants, 4, 3, tmp_path)
    assert used.spilled == 0


def test_gdpa_unshared_keys_compile(tmp_path: Path) -> None:
    tiles = gdpa_kernels.TABLES[2, 128].keys
    kernel = gdpa_kernels.keys_kernel
    types = argument_types(kernel, "bf16")
    del types["share"]
    constants = {"share": 1, **gdpa_kernels.keys_constants(tiles, False, 128, 4)}
    used = usage(kernel, types, constants, tiles.warps, tiles.stages, tmp_path)
    assert used.spilled <= SPILLED * used.instructions
    assert used.hgmma > 0


def test_gdpa_float16_compiles(tmp_path: Path) -> None:
    tiles = gdpa_kernels.TABLES[2, 128].forward[-1]
    types = argument_types(gdpa_kernels.forward_kernel, "fp16")
    constants = gdpa_kernels.forward_constants(tiles, False, 128, 4)
    used = usage(gdpa_kernels.forward_kernel, types, constants, tiles.warps, tiles.stages, tmp_path)
    assert used.spilled == 0
    assert used.hgmma > 0
