"""The native library itself: instruction sets, accuracy, threads, and how it is built."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kunlun.ops import gdpa, hstu_attention, native, seed_attention, window_attention
from kunlun.ops.activations import ACTIVATIONS
from kunlun.ops.gdpa.reference import gdpa_reference
from kunlun.ops.hstu_attention.reference import hstu_attention_reference
from kunlun.ops.native import build
from kunlun.ops.seed_attention.op import seed_attention_op
from kunlun.ops.seed_attention.reference import seed_attention_reference
from kunlun.ops.window_attention.op import window_attention_op
from kunlun.ops.window_attention.reference import window_attention_reference
from tests.ops.helpers import (
    LENGTHS,
    assert_matches,
    bits,
    gradients,
    needs_native,
    normal,
    offsets_of,
    use,
)

pytestmark = needs_native

# The last one is longer than the pieces that threads take on.
LENGTH_SETS = [LENGTHS["buckets"], LENGTHS["skewed"], (50,) * 40, (2300, 3)]


def run_gdpa(
    lengths: tuple[int, ...], dim: int, dtype: torch.dtype, keys: int = 33
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]:
    q = normal(sum(lengths), 4, dim, dtype=dtype, seed=1)
    k, v = (normal(len(lengths) * keys, 2, dim, dtype=dtype, seed=s) for s in (2, 3))
    kwargs = {
        "q_offsets": offsets_of(lengths),
        "kv_offsets": offsets_of((keys,) * len(lengths)),
        "activation": ["gelu", "gelu_approx", "silu", "relu_square"],
        "scale": 0.3,
        "out_scale": 0.5,
    }
    return partial(gdpa, **kwargs), partial(gdpa_reference, **kwargs), [q, k, v]


def run_window(
    lengths: tuple[int, ...], dim: int, dtype: torch.dtype
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]:
    q = normal(sum(lengths), 4, dim, dtype=dtype, seed=1)
    k, v = (normal(sum(lengths), 2, dim, dtype=dtype, seed=s) for s in (2, 3))
    kwargs = {"offsets": offsets_of(lengths), "window": 40}
    run, reference = window_attention, window_attention_reference
    return partial(run, **kwargs), partial(reference, **kwargs), [q, k, v]


def run_seeds(
    lengths: tuple[int, ...], dim: int, dtype: torch.dtype
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]:
    seeds = normal(70, 2, dim, dtype=dtype, seed=1)
    k, v = (normal(sum(lengths), 2, dim, dtype=dtype, seed=s) for s in (2, 3))
    kwargs = {"offsets": offsets_of(lengths)}
    run, reference = seed_attention, seed_attention_reference
    return partial(run, **kwargs), partial(reference, **kwargs), [seeds, k, v]


def run_hstu(
    lengths: tuple[int, ...], dim: int, dtype: torch.dtype
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]:
    rows = [normal(sum(lengths), 3, dim, dtype=dtype, seed=s) for s in (1, 2, 3)]
    tables = [normal(count, dtype=dtype, seed=count) for count in (9, 40)]
    time = normal(sum(lengths), seed=6).mul(4).exp().cumsum(0)  # from parts of seconds to weeks

    def on(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor, **backend: str) -> Tensor:
            kwargs = {"window": 200, "out_scale": 0.1, **backend}
            return attention(q, k, v, offsets_of(lengths), time, *tables, **kwargs)

        return run

    return on(hstu_attention), on(hstu_attention_reference), [*rows, *tables]


OPERATORS = [run_gdpa, run_window, run_seeds, run_hstu]
each_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__[4:])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_library_is_loaded() -> None:
    library, reason = native.load()
    assert library is not None, reason


@each_operator
@pytest.mark.parametrize("dim", [3, 8, 40])
@pytest.mark.parametrize("isa", native.ISAS)
def test_every_instruction_set_matches_reference(
    operator: Callable, dim: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(isa, monkeypatch)
    run, reference, inputs = operator((1, 17, 0, 130), dim, torch.float32)
    names = [str(i) for i in range(len(inputs))]
    assert_matches(partial(run, backend="native"), reference, inputs, names)


@each_operator
@pytest.mark.parametrize("lengths", LENGTH_SETS, ids=["buckets", "skewed", "equal", "long"])
@pytest.mark.parametrize("dtype", native.DTYPES, ids=lambda d: str(d)[6:])
def test_errors_are_those_of_torch(
    operator: Callable, lengths: tuple[int, ...], dtype: torch.dtype
) -> None:
    run, reference, inputs = operator(lengths, 16, dtype)
    ours = gradients(partial(run, backend="native"), inputs)
    torchs = gradients(partial(run, backend="portable"), inputs)
    truth = gradients(reference, [x.double() for x in inputs])
    for a, b, want in zip(ours, torchs, truth, strict=True):
        # A table's entry adds up thousands of pairs of both signs, each with its own roundings.
        grain = (8 if a.dim() == 1 else 1) * torch.finfo(dtype).eps * float(want.abs().max())
        assert float((a - want).abs().max()) <= 2 * float((b - want).abs().max()) + grain


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_within_a_few_roundings(activation: str) -> None:
    # One key of one channel: the result is the activation, the gradient of q its derivative.
    x = torch.cat([torch.linspace(-15, 15, 3001), torch.tensor([0.0, -3.0, 3.0, 1e4, -1e4, 60.0])])
    run = partial(
        gdpa,
        k=torch.ones(1, 1, 1),
        v=torch.ones(1, 1, 1),
        q_offsets=offsets_of((len(x),)),
        kv_offsets=offsets_of((1,)),
        activation=activation,
        backend="native",
    )
    q = x[:, None, None].clone().requires_grad_()
    got = run(q)
    slope = torch.autograd.grad(got.sum(), q)[0].flatten()
    exact = x.double().requires_grad_()
    want = ACTIVATIONS[activation].formula(exact)
    want_slope = torch.autograd.grad(want.sum(), exact)[0]
    size = x.abs().double().clamp(min=1)
    size = size * size if activation == "relu_square" else size
    eps = torch.finfo(torch.float32).eps
    assert bool(((got.flatten().double() - want).abs() <= 4 * eps * size).all())
    assert bool(((slope.double() - want_slope).abs() <= 16 * eps * size).all())


@each_operator
def test_nan_in_an_input_shows_in_the_result(operator: Callable) -> None:
    run, _, inputs = operator((20, 20), 8, torch.float32)
    for i, x in enumerate(inputs):
        spoilt = x.clone()
        spoilt.view(-1)[0] = float("nan")
        out = run(*inputs[:i], spoilt, *inputs[i + 1 :], backend="native")
        assert bool(out[0].isnan().any()), i


def test_log_sum_exp_is_that_of_the_portable_path() -> None:
    offsets = offsets_of((5, 0, 70))
    x, seeds = [normal(75, 2, 8, seed=s) for s in range(3)], normal(6, 2, 8, seed=4)
    by_backend = [
        (
            window_attention_op(*x, offsets, 9, False, 0.7, backend)[1],
            seed_attention_op(seeds, *x[1:], offsets, 0.7, backend)[1],
        )
        for backend in ("native", "portable")
    ]
    for ours, torchs in zip(*by_backend, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=4e-6)
    assert not by_backend[0][1][1].any()


@each_operator
@pytest.mark.parametrize("lengths", LENGTH_SETS, ids=["buckets", "skewed", "equal", "long"])
def test_bits_do_not_depend_on_the_number_of_threads(
    operator: Callable, lengths: tuple[int, ...], threads: Callable[[int], None]
) -> None:
    run, _, inputs = operator(lengths, 16, torch.float32)
    run = partial(run, backend="native")
    threads(1)
    alone = gradients(run, inputs)
    for count in (2, 3, 8):
        threads(count)
        for _ in range(5):
            for a, b in zip(alone, gradients(run, inputs), strict=True):
                assert torch.equal(bits(a), bits(b))


def run_gdpa_long(lengths: tuple[int, ...], dim: int, dtype: torch.dtype):
    return run_gdpa(lengths, dim, dtype, MANY)


MANY = 150  # more keys than are multiplied at a time


@pytest.mark.parametrize(
    "operator", [run_gdpa_long, run_window, run_seeds], ids=["gdpa", "window", "seeds"]
)
@pytest.mark.parametrize("dim", [64, 24, 40])
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_results_larger_than_a_cache_hold_the_same_bits(
    operator: Callable, dim: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written around the caches where rows are whole lines of memory: at width 64."""
    use(isa, monkeypatch)
    lengths = (70, 33, 100) * 110
    starts = offsets_of(lengths).tolist()

    def of_sample(x: Tensor, i: int) -> Tensor:
        """Its rows, or its row of a result with one a sample; the seeds are everyone's."""
        if len(x) == len(lengths):
            return x[i : i + 1]
        if len(x) == len(lengths) * MANY:  # keys and values of gdpa
            return x[i * MANY : (i + 1) * MANY]
        return x[starts[i] : starts[i + 1]] if len(x) == starts[-1] else x

    def trained(run: Callable[..., Tensor], inputs: list[Tensor], outer: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = run(*leaves, backend="native")
        return [out.detach(), *torch.autograd.grad(out, leaves, outer)]

    run, _, inputs = operator(lengths, dim, torch.float32)
    outer = normal(*run(*inputs, backend="native").shape, seed=4)
    got = trained(run, inputs, outer)
    shared = operator is run_seeds  # their own gradient is a sum over all samples
    large = [x for k, x in enumerate(got) if not (shared and k == 1)]
    assert all(x.nbytes > 4 << 20 for x in large)
    for i in (0, 1, 2, 163, 328, 329):
        run, *_ = operator((lengths[i],), dim, torch.float32)
        alone = trained(run, [of_sample(x, i) for x in inputs], of_sample(outer, i))
        for k, (a, b) in enumerate(zip(got, alone, strict=True)):
            if not (shared and k == 1):
                assert torch.equal(bits(of_sample(a, i)), bits(b))


def test_groups_of_heads_of_two_sizes_match_the_reference(threads: Callable[[int], None]) -> None:
    """Five heads, of which an item takes a part: for the threads, then for the cache."""
    for count, lengths, dim, window, seeds in [
        (2, (20,) * 5, 16, 9, 7),
        (1, (1000, 0, 40), 64, 400, 512),
    ]:
        threads(count)
        q, k, v = (normal(sum(lengths), heads, dim, seed=heads) for heads in (10, 5, 5))
        kwargs = {"q_offsets": offsets_of(lengths[::-1]), "kv_offsets": offsets_of(lengths)}
        run = partial(gdpa, **kwargs, backend="native")
        assert_matches(run, partial(gdpa_reference, **kwargs), [q, k, v], "qkv")
        kwargs = {"offsets": offsets_of(lengths), "window": window}
        run = partial(window_attention, **kwargs, backend="native")
        assert_matches(run, partial(window_attention_reference, **kwargs), [q, k, v], "qkv")
        kwargs = {"offsets": offsets_of(lengths)}
        run = partial(seed_attention, **kwargs, backend="native")
        inputs = [normal(seeds, 5, dim, seed=1), k, v]
        assert_matches(run, partial(seed_attention_reference, **kwargs), inputs, "skv")


@each_operator
def test_calls_from_several_threads_do_not_mix(
    operator: Callable, threads: Callable[[int], None]
) -> None:
    threads(2)
    cases = [operator(lengths, dim, torch.float32) for lengths in LENGTH_SETS for dim in (8, 24)]
    want = [gradients(partial(run, backend="native"), inputs) for run, _, inputs in cases]
    wrong = []

    def work(start: int) -> None:
        for i in range(start, start + 12):
            run, _, inputs = cases[i % len(cases)]
            got = gradients(partial(run, backend="native"), inputs)
            pairs = zip(got, want[i % len(cases)], strict=True)
            wrong.extend(i for a, b in pairs if not torch.equal(bits(a), bits(b)))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_threads_are_torchs_own() -> None:
    code = """
import os, torch
from kunlun.ops import gdpa
torch.set_num_threads(3)
x = torch.randn(1 << 22)
(x * x).sum()  # starts torch's threads
before = len(os.listdir("/proc/self/task"))
q, offsets = torch.randn(4000, 2, 16), torch.arange(0, 4001, 100)
for _ in range(20):
    gdpa(q, q, q, offsets, offsets, backend="native")
print(len(os.listdir("/proc/self/task")) - before)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split()[-1]}
print(len(maps))
"""
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["0", "1"]


def test_build_makes_a_library_that_loads(tmp_path: Path) -> None:
    made = tmp_path / "made.so"
    assert build.stale(made)
    build.build(made)
    assert not build.stale(made)
    assert [path.name for path in tmp_path.iterdir()] == ["made.so"]
    assert ctypes.CDLL(str(made)).kunlun_best_isa() == native.load().library.isa
    made.write_bytes(made.read_bytes().replace(build.signature(), b"x" * len(build.signature())))
    assert build.stale(made)


def test_build_says_why_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"^no-such-compiler does not start: "):
        build.build(tmp_path / "made.so")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match=r"^false .* failed:"):
        build.build(tmp_path / "made.so")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"^no C\+\+ compiler found \(c\+\+, g\+\+ or "):
        build.build(tmp_path / "made.so")
    assert not list(tmp_path.iterdir())


def test_a_library_of_other_sources_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "libkunlun.so"
    monkeypatch.setattr(build, "LIBRARY", other)
    monkeypatch.setattr(build, "stale", lambda: True)
    assert native.load.__wrapped__().reason.startswith("the native library is not built; python -m")
    other.write_bytes(b"")
    assert "is built from other sources; " in native.load.__wrapped__().reason
    monkeypatch.setattr(build, "stale", lambda: False)
    assert native.load.__wrapped__().reason.startswith("the native library does not load: ")


def test_nothing_but_the_interface_is_exported() -> None:
    found = subprocess.run(
        ["nm", "-D", "--defined-only", str(build.LIBRARY)],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        pytest.skip("no nm that reads this library")
    names = [line.split()[-1] for line in found.stdout.splitlines()]
    assert [name for name in names if not name.startswith("kunlun_")] == []
