"""Every tile size that ships, compiled for sm_90: registers, shared memory, matrix instructions.

No GPU is needed. What no compiler can say, how fast it runs, stands in benchmarks/gpu.sh.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is for Linux")

from kunlun.ops.gdpa import kernels as gdpa_kernels  # noqa: E402
from kunlun.ops.triton.activations import CODES  # noqa: E402
from kunlun.ops.triton.tiles import INTERPRETED, Tiles  # noqa: E402
from tests.ops.aot import SHARED_LIMIT, argument_types, usage  # noqa: E402

pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be compiled")


@pytest.fixture(scope="module", autouse=True)
def no_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles anew, into a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def _gdpa() -> Iterator[object]:
    acts = 1 << CODES["gelu_approx"]
    for (size, width), table in gdpa_kernels.TABLES.items():
        dtype = {2: "bf16", 4: "fp32"}[size]
        compiled: list[tuple[str, triton.JITFunction, Tiles, dict[str, object]]] = []
        for b, tiles in enumerate(table.forward):
            resident = b < len(table.forward) - 1
            constants = gdpa_kernels.forward_constants(tiles, resident, width, acts)
            compiled.append((f"forward{b}", gdpa_kernels.forward_kernel, tiles, constants))
        for b, tiles in enumerate(table.whole):
            constants = gdpa_kernels.keys_constants(tiles, True, width, acts)
            compiled.append((f"whole{b}", gdpa_kernels.keys_kernel, tiles, constants))
        constants = gdpa_kernels.keys_constants(table.keys, False, width, acts)
        compiled.append(("keys", gdpa_kernels.keys_kernel, table.keys, constants))
        constants = gdpa_kernels.constants(table.queries, width, acts)
        compiled.append(("queries", gdpa_kernels.queries_kernel, table.queries, constants))
        for name, *rest in compiled:
            yield pytest.param(dtype, *rest, id=f"{dtype}-D{width}-{name}")


@pytest.mark.parametrize(("dtype", "kernel", "tiles", "constants"), list(_gdpa()))
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
    assert used.spilled_in_loop == 0
    assert used.shared <= SHARED_LIMIT
    assert used.programs >= tiles.programs
    if dtype == "bf16":
        assert used.spilled == 0
        assert used.hgmma > 0
        assert used.hmma == 0
