"""Checks and times every operator on a GPU; benchmarks/gpu.sh runs it there.

    PYTHONPATH=src python benchmarks/gpu.py [--out DIR] [--only gdpa window seeds]
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --tiny --out DIR     # what runs anywhere

Needs torch and, on a GPU, Triton; nothing has to be installed. Writes gpu.json into --out, $OUT or
the working directory. First gpu_checks.py compares every operator with float64. An operator that
fails a case, or that there was no time to check, is not timed; cases that there was no time for are
listed as unchecked. The exit code is 1 unless all cases passed. Then forward and backward are timed
beside a roof: the larger of useful FLOPs over the rate of a large matrix product and of least bytes
over the rate of a large copy, both measured in the same run. `share` is that roof over the time.

Other ways to compute the same are verified against ours and timed on the same rows. They get
their padded tensors, masks and block masks for free; all start with samples sorted as they come.
FlexAttention cannot express GDPA, which has no softmax.

No figure of this script has been committed: until a file in benchmarks/results says otherwise, its
GPU parts have been run on no GPU, and `--device cpu --tiny` is all that was tried.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_checks import captures, cases, check, gdpa_case, seed_case, window_case
from torch import Tensor

from kunlun.ops import flops, gdpa, seed_attention, window_attention

BACKENDS = {"cuda": "triton", "cpu": "portable"}
OPERATORS = ("gdpa", "window", "seeds")
STARTED = time.monotonic()
LIMIT = 560.0  # seconds for everything
CHECK_LIMIT = 300.0  # of these for checks; what is left out is unchecked
COMPILING = 90.0  # seconds that must be left to start a way that compiles


class Shape(NamedTuple):
    """A production-like job: lengths are uniform between 1 and `longest`."""

    operator: str
    samples: int
    longest: int
    heads: int
    dim: int
    keys: int = 0  # gdpa: keys a sample
    window: int = 0
    seeds: int = 0


SHAPES = [
    Shape("gdpa", 1152, 2048, 4, 128, keys=256),
    Shape("window", 512, 2048, 4, 128, window=100),
    Shape("window", 512, 2048, 8, 32, window=100),
    Shape("seeds", 512, 2048, 4, 128, seeds=32),
    Shape("seeds", 512, 2048, 8, 32, seeds=256),
]
TINY = [
    Shape("gdpa", 3, 20, 2, 16, keys=5),
    Shape("window", 3, 20, 2, 16, window=4),
    Shape("seeds", 3, 20, 2, 16, seeds=6),
]
Run = Callable[..., Tensor]


class Way(NamedTuple):
    """A way to compute a job."""

    name: str
    run: Run  # of inputs
    inputs: list[Tensor]
    pack: Callable[[Tensor], Tensor]  # its result -> ours
    compiles: bool = False


class Skipped(NamedTuple):
    """A way that does not exist here, and why."""

    name: str
    why: str


def elapsed() -> float:
    """Seconds since the script started."""
    return time.monotonic() - STARTED


def median_ms(run: Callable[[], Any], device: torch.device, budget: float = 1.0) -> float:
    """Median milliseconds of at least 3 runs after 2 unmeasured ones, within about `budget`."""
    times: list[float] = []
    run(), run()
    begun = time.monotonic()
    while len(times) < 3 or (time.monotonic() - begun < budget and len(times) < 100):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            before = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times)


def roofs(device: torch.device, dtype: torch.dtype, tiny: bool) -> dict[str, float]:
    """FLOPs a second of a large product, bytes a second of a large copy (read and written)."""
    side, size = (256, 2**20) if tiny else (8192, 2**31)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = median_ms(lambda: a @ b, device)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = median_ms(lambda: target.copy_(source), device)
    return {
        "flops_per_s": 2 * side**3 / product * 1e3,
        "bytes_per_s": 2 * size / copy * 1e3,
    }


class Job:
    """Inputs of a shape, packed and padded, and its useful work."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        size = (shape.samples,)
        self.shape = shape
        self.lengths = torch.randint(1, shape.longest + 1, size, generator=generator)
        self.offsets = torch.cat([torch.zeros(1).long(), self.lengths.cumsum(0)]).to(device)
        self.total = int(self.lengths.sum())
        place = torch.arange(shape.longest, device=device)
        self.present = place < self.lengths.to(device)[:, None]  # [n, T]
        torch.manual_seed(0)

        def rows(count: int) -> Tensor:
            return torch.randn(count, shape.heads, shape.dim, device=device, dtype=dtype)

        if shape.operator == "gdpa":
            few = shape.samples * shape.keys
            self.kv_offsets = torch.arange(shape.samples + 1, device=device) * shape.keys
            self.inputs = [rows(self.total), rows(few), rows(few)]
        else:
            self.inputs = [rows(shape.seeds or self.total), rows(self.total), rows(self.total)]

    def ours(self, backend: str) -> Way:
        shape, offsets = self.shape, self.offsets
        runs: dict[str, Run] = {
            "gdpa": lambda q, k, v: gdpa(
                q, k, v, offsets, self.kv_offsets, scale=shape.dim**-0.5, backend=backend
            ),
            "window": lambda q, k, v: window_attention(
                q, k, v, offsets, window=shape.window, backend=backend
            ),
            "seeds": lambda s, k, v: seed_attention(s, k, v, offsets, backend=backend),
        }
        return Way("kunlun", runs[shape.operator], self.inputs, lambda x: x)

    def work(self, itemsize: int) -> dict[str, tuple[int, int]]:
        """(FLOPs, least bytes) of forward and backward."""
        shape, lengths = self.shape, self.lengths.tolist()
        pairs = {
            "gdpa": shape.keys * self.total,
            "window": sum(flops.window_pairs(n, shape.window) for n in lengths),
            "seeds": shape.seeds * self.total,
        }[shape.operator]
        useful = flops.gdpa_flops(pairs, shape.heads, shape.dim)
        read = sum(x.numel() for x in self.inputs)
        result = self.inputs[0].numel() * (shape.samples if shape.seeds else 1)
        again = 0 if shape.operator == "gdpa" else result  # softmax reads its result as well
        return {
            "forward": (useful, itemsize * (read + result)),
            "backward": (int(flops.BACKWARD * useful), itemsize * (2 * read + result + again)),
        }

    def pad(self, x: Tensor) -> Tensor:
        """[L, H, D] -> [n, H, T, D]."""
        out = x.new_zeros(*self.present.shape, *x.shape[1:])
        out[self.present] = x
        return out.transpose(1, 2).contiguous()

    def unpad(self, x: Tensor) -> Tensor:
        """[n, H, T, D] -> [L, H, D]."""
        return x.transpose(1, 2)[self.present]

    def others(self) -> Iterator[Way | Skipped]:
        """Other ways to compute the job, the fastest known first."""
        yield from {"gdpa": self._gdpa, "window": self._window, "seeds": self._seeds}[
            self.shape.operator
        ]()

    def _gdpa(self) -> Iterator[Way | Skipped]:
        shape, (q, k, v) = self.shape, self.inputs

        def dense(x: Tensor) -> Tensor:  # [n K, H, D] -> [n, H, K, D]
            return x.view(shape.samples, -1, shape.heads, shape.dim).transpose(1, 2).contiguous()

        def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = q @ k.mT * shape.dim**-0.5
            return F.gelu(scores, approximate="tanh") @ v

        inputs = [self.pad(q), dense(k), dense(v)]
        yield Way("padded eager", padded, inputs, self.unpad)
        if q.is_cuda:
            yield Way("padded compiled", torch.compile(padded), inputs, self.unpad, True)
        for name in ("FlexAttention", "SDPA", "flash-attn"):
            yield Skipped(name, "normalises by a softmax, which GDPA does not have")

    def _window(self) -> Iterator[Way | Skipped]:
        shape, present, reach = self.shape, self.present, self.shape.window
        inputs = [self.pad(x) for x in self.inputs]
        ends = self.lengths.to(present.device)

        def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return ((i - j).abs() <= reach) & (j < ends[b]) & (i < ends[b])

        yield from _flex(near, shape.longest, inputs, self.unpad, shape.samples)
        place = torch.arange(shape.longest, device=present.device)
        band = (place[:, None] - place).abs() <= reach
        mask = (band & present[:, None, None, :]) | ~present[:, None, :, None]
        yield Way(
            "padded SDPA",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask),
            inputs,
            self.unpad,
        )
        varlen = _flash_attn()
        if isinstance(varlen, Skipped):
            yield varlen
            return
        offsets, longest = self.offsets.int(), shape.longest
        yield Way(
            "flash-attn",
            lambda q, k, v: varlen(
                q, k, v, offsets, offsets, longest, longest, window_size=(reach, reach)
            ),
            self.inputs,
            lambda x: x,
        )

    def _seeds(self) -> Iterator[Way | Skipped]:
        shape, present = self.shape, self.present
        seeds, k, v = self.inputs
        inputs = [seeds.transpose(0, 1).contiguous(), self.pad(k), self.pad(v)]
        ends = self.lengths.to(present.device)

        def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return j < ends[b]

        def pack(x: Tensor) -> Tensor:  # [n, H, S, D] -> [n, S, H, D]
            return x.transpose(1, 2)

        for way in _flex(inside, shape.longest, inputs, pack, shape.samples, shape.seeds):
            if isinstance(way, Way):
                run = way.run
                yield way._replace(run=lambda s, k, v, run=run: run(_repeat(s, len(k)), k, v))
            else:
                yield way
        mask = present[:, None, None, :]
        yield Way(
            "padded SDPA",
            lambda s, k, v: F.scaled_dot_product_attention(_repeat(s, len(k)), k, v, mask),
            inputs,
            pack,
        )
        varlen = _flash_attn()
        if isinstance(varlen, Skipped):
            yield varlen
            return
        n, offsets, longest = shape.samples, self.offsets.int(), shape.longest
        seed_offsets = torch.arange(n + 1, device=k.device, dtype=torch.int32) * shape.seeds
        yield Way(
            "flash-attn",
            lambda s, k, v: varlen(
                s.repeat(n, 1, 1), k, v, seed_offsets, offsets, shape.seeds, longest
            ),
            self.inputs,
            lambda x: x.view(n, shape.seeds, shape.heads, shape.dim),
        )


def _repeat(seeds: Tensor, samples: int) -> Tensor:
    """[H, S, D] -> [n, H, S, D]."""
    return seeds.expand(samples, -1, -1, -1)


def _flex(
    mask: Callable[..., Tensor],
    longest: int,
    inputs: list[Tensor],
    pack: Callable[[Tensor], Tensor],
    samples: int,
    queries: int = 0,
) -> Iterator[Way | Skipped]:
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        yield Skipped("FlexAttention", str(error))
        return
    device = inputs[1].device
    block_mask = create_block_mask(mask, samples, None, queries or longest, longest, str(device))
    call: Any = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else None
    call = call or flex_attention
    yield Way(
        "FlexAttention",
        lambda q, k, v: call(q, k, v, block_mask=block_mask),
        inputs,
        pack,
        device.type == "cuda",
    )


def _flash_attn() -> Any:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        return Skipped("flash-attn", str(error))
    return flash_attn_varlen_func


def time_way(way: Way, device: torch.device, budget: float) -> dict[str, float]:
    """Milliseconds of a forward without gradients, and of a backward alone."""
    leaves = [x.detach().requires_grad_() for x in way.inputs]
    with torch.no_grad():
        forward = median_ms(lambda: way.run(*way.inputs), device, budget)
    out = way.run(*leaves)
    outer = torch.randn_like(out)
    backward = median_ms(
        lambda: torch.autograd.grad(out, leaves, outer, retain_graph=True), device, budget
    )
    return {"forward_ms": forward, "backward_ms": backward}


def time_shape(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    peak: dict[str, float],
    budget: float,
) -> Iterator[dict[str, Any]]:
    """A line for every way, ours first; whatever a way raises is its line."""
    job = Job(shape, device, dtype)
    ours = job.ours(BACKENDS[device.type])
    line = {**shape._asdict(), "rows": job.total, "dtype": str(dtype)[6:]}
    with torch.no_grad():
        want = ours.run(*ours.inputs)
    taken = time_way(ours, device, budget)
    found: dict[str, Any] = {}
    for half, (useful, size) in job.work(dtype.itemsize).items():
        compute, memory = useful / peak["flops_per_s"], size / peak["bytes_per_s"]
        seconds = taken[f"{half}_ms"] / 1e3
        found[half] = {
            "share": max(compute, memory) / seconds,
            "roof": "compute" if compute > memory else "memory",
            "tflops": useful / seconds / 1e12,
            "gigabytes_per_s": size / seconds / 1e9,
        }
    yield {**line, "way": ours.name, **taken, **found}
    for way in job.others():
        if isinstance(way, Skipped):
            yield {**line, "way": way.name, "skipped": way.why}
            continue
        if elapsed() > LIMIT - (COMPILING if way.compiles else 15):
            yield {**line, "way": way.name, "skipped": "no time left"}
            continue
        theirs: dict[str, Any] = {**line, "way": way.name}
        try:
            theirs["error"] = _difference(way, want)
            if theirs["error"] <= (1e-4 if dtype == torch.float32 else 3e-2):
                theirs |= time_way(way, device, budget)
                for half in ("forward", "backward"):
                    theirs[f"{half}_speedup"] = theirs[f"{half}_ms"] / taken[f"{half}_ms"]
            else:
                theirs["skipped"] = "differs from ours"
        except Exception as error:  # what others cannot do must not end the run
            theirs["skipped"] = f"{type(error).__name__}: {error}".splitlines()[0]
        yield theirs


def _difference(way: Way, want: Tensor) -> float:
    """Largest difference from our result, against its largest entry."""
    with torch.no_grad():
        got = way.pack(way.run(*way.inputs))
    return float((got - want).abs().max() / want.abs().max())


def targets(timings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the operators set out to reach on a GPU, and what this run found."""
    found = []
    for line in timings:
        if line["operator"] == "gdpa" and line["way"] == "kunlun":
            for half, wanted in (("forward", 0.65), ("backward", 0.45)):
                found.append((f"gdpa {half}, share of the roof", wanted, line[half]["share"]))
        elif "forward_speedup" in line:
            least = min(line["forward_speedup"], line["backward_speedup"])
            wanted = {"padded eager": 3.0, "FlexAttention": 1.0}.get(line["way"])
            if wanted is not None:
                name = f"{line['operator']}, D {line['dim']}, over {line['way']}"
                found.append((name, wanted, least))
    return [{"target": t, "wanted": w, "found": x, "met": x >= w} for t, w, x in found]


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory": properties.total_memory}
        found |= {"sms": properties.multi_processor_count, "cuda": torch.version.cuda}
    else:
        found |= {"device": platform.machine(), "threads": torch.get_num_threads()}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    found["commit"] = commit.stdout.strip() or None
    return found


def run_checks(only: list[str], device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """A line for every case, those there was no time for included."""
    backend = BACKENDS[device.type]
    lines = []
    for case in cases(only, tiny):
        if elapsed() > CHECK_LIMIT:
            label = {"operator": case.operator, "case": case.label, "dtype": str(case.dtype)[6:]}
            lines.append({**label, "unchecked": "no time left"})
            continue
        lines.append(check(case, device, backend))
    if device.type == "cuda":
        kwargs: dict[str, Any] = {"width": 128, "dtype": torch.bfloat16}
        lengths = (70, 0, 300)
        makers = {
            "gdpa": lambda: gdpa_case("graph", lengths, (7, 7, 7), **kwargs),
            "window": lambda: window_case("graph", lengths, window=100, **kwargs),
            "seeds": lambda: seed_case("graph", lengths, seeds=20, **kwargs),
        }
        for name in only:
            line = {"operator": name, "case": "recorded as a CUDA graph"}
            try:
                lines.append({**line, "passed": captures(makers[name](), device, backend)})
            except RuntimeError as error:
                lines.append({**line, "passed": False, "skipped": str(error).splitlines()[0]})
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "."))
    parser.add_argument("--only", nargs="+", default=list(OPERATORS), choices=OPERATORS)
    parser.add_argument("--device", default="cuda", choices=list(BACKENDS))
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="of what is timed")
    parser.add_argument("--tiny", action="store_true", help="tries the script, measures nothing")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --tiny tries the script without one")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "gpu.json"
    report: dict[str, Any] = {"machine": machine(device), "tiny": args.tiny, "passed": False}

    def write() -> None:  # after every step: a run that is cut short leaves what it found
        report["seconds"] = round(elapsed(), 1)
        file.write_text(json.dumps(report, indent=1) + "\n")

    report["checks"] = run_checks(args.only, device, args.tiny)
    failed = [line for line in report["checks"] if not line.get("passed", True)]
    passed = [line for line in report["checks"] if line.get("passed")]
    report["passed"] = len(passed) == len(report["checks"])
    report["unchecked"] = len(report["checks"]) - len(passed) - len(failed)
    write()
    print(
        f"{len(passed)} of {len(report['checks'])} checks passed, {len(failed)} failed, "
        f"{report['unchecked']} unchecked"
    )
    for line in failed[:20]:
        print("failed:", json.dumps(line))
    right = {line["operator"] for line in passed} - {line["operator"] for line in failed}
    for name in args.only:
        if name not in right:
            print(f"{name} is not timed; see {file}", file=sys.stderr)
    if not right:
        return 1
    report["roofs"], report["timings"] = {}, []
    for name in args.dtype:
        dtype = getattr(torch, name)
        report["roofs"][name] = peak = roofs(device, dtype, args.tiny)
        for shape in TINY if args.tiny else SHAPES:
            if shape.operator not in right:
                continue
            for line in time_shape(shape, device, dtype, peak, 0.02 if args.tiny else 1.0):
                report["timings"].append(line)
                print(json.dumps(line), flush=True)
                write()
    report["targets"] = targets(report["timings"])
    write()
    for line in report["targets"]:
        print(f"{line['target']}: {line['found']:.2f}, wanted {line['wanted']}")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
