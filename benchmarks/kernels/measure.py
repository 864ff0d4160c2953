"""How long a call takes, and what the chip can do at most: `python -m benchmarks.kernels.measure`.

Ceilings are what a large copy and a large matrix product reach on this very device, on random values.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.kernels.apart import Record, attempt
from benchmarks.kernels.case import Call, Case, Inputs
from benchmarks.kernels.command import parser
from benchmarks.report import environment, median, table, write_json

Calls = Sequence[Callable[[], object]]
Timer = Callable[[Calls], list[float]]

SAMPLES = 20
MOST_COPIES = 256  # of the inputs; small ones then stay in the cache, as a layer's activations do in the model
MOST_CALLS = 1000  # in one graph
LEAST_MS = 4.0  # of one sample, which the start of a graph and the clock of events do not blur


def main(argv: list[str] | None = None) -> int:
    options = parser("measure", __doc__.partition("\n")[0]).parse_args(argv)
    device = torch.device(options.device)
    where, found = environment(device), ceilings(device)
    print(table(["", ""], [[key, str(value)] for key, value in where.items()]))
    print(table(["", ""], [[key, f"{value:.3g}" if value else "-"] for key, value in found.items()]))
    write_json(options.json, {"benchmark": "environment", "environment": where, "ceilings": found})
    return 0


def ceilings(device: torch.device) -> Record:
    """bytes_per_s of a copy, read and written; flops_per_s of a bfloat16 product; fp8_flops_per_s where there are."""
    gpu, timer = device.type == "cuda", timer_for(device)
    count, side = (1 << 29, 8192) if gpu else (1 << 22, 256)
    source = torch.randn(count, device=device, dtype=torch.bfloat16)
    into = torch.empty_like(source)
    copy_ms = median(timer([partial(into.copy_, source)]))
    del source, into
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product_ms = median(timer([partial(torch.mm, a, b)]))

    def fp8() -> Record:
        one, x, y = torch.ones((), device=device), a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        product = partial(torch._scaled_mm, x, y, one, one, out_dtype=torch.bfloat16)
        return {"ms": median(timer([product]))}

    fp8_ms = attempt(fp8, ()).get("ms") if gpu else None
    flops = 2 * side**3
    return {
        "bytes_per_s": 4 * count / copy_ms * 1e3,
        "flops_per_s": flops / product_ms * 1e3,
        "fp8_flops_per_s": flops / fp8_ms * 1e3 if fp8_ms else None,
    }


def timer_for(device: torch.device) -> Timer:
    """Gives the milliseconds of a call among others made one after the other, several times over."""
    return _gpu_ms if device.type == "cuda" else _clock_ms


def rotated(case: Case, device: torch.device) -> list[Inputs]:
    """Inputs drawn so often that what a call reads has left the cache when its turn comes again."""
    if device.type == "cuda":
        cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
        room = torch.cuda.mem_get_info(device)[0] // 3
    else:
        cache, room = 0, 0
    found = [case.inputs(device)]
    size = max(1, size_of(found[0]))
    touched = min(size, case.bytes or size)  # of a large table, a call may read little
    copies = max(2, min(1 + -(-2 * cache // touched), MOST_COPIES, room // size))
    return found + [case.inputs(device) for _ in range(copies - 1)]


def calls_of(run: Call, inputs: Sequence[Inputs]) -> list[Callable[[], object]]:
    return [partial(run, *arguments) for arguments in inputs]


def size_of(value: Any) -> int:
    """Bytes of the tensors in it."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple | list):
        return sum(map(size_of, value))
    if is_dataclass(value):
        return sum(size_of(getattr(value, field.name)) for field in fields(value))
    return 0


def _clock_ms(calls: Calls) -> list[float]:
    samples = []
    for call in (*calls, *calls):
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    return samples


def _gpu_ms(calls: Calls) -> list[float]:
    """By replays of a CUDA graph of many calls; as launched from the host for what waits for the device."""
    calls[0]()
    torch.cuda.synchronize()
    if _waits(calls[-1]):
        return _sampled(lambda: [call() for call in calls], calls=len(calls))
    once = median(_sampled(lambda: [call() for call in calls], calls=len(calls), samples=3))
    rounds = max(1, min(MOST_CALLS, round(LEAST_MS / once)) // len(calls))
    graph = torch.cuda.CUDAGraph()
    # Results are kept for a round, so that each call writes to memory of its own.
    kept: deque[object] = deque(maxlen=len(calls))
    with torch.cuda.graph(graph):
        for call in [*calls] * rounds:
            kept.append(call())
    return _sampled(graph.replay, calls=len(calls) * rounds)


def _waits(call: Callable[[], object]) -> bool:
    """Whether it needs a value on the host, so that no graph can hold it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _sampled(work: Callable[[], object], *, calls: int, samples: int = SAMPLES) -> list[float]:
    """Milliseconds of one of the `calls` that the work consists of."""
    event: Any = torch.cuda.Event
    for _ in range(2):
        work()
    times = []
    for _ in range(samples):
        start, end = (event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return times


if __name__ == "__main__":
    sys.exit(main())
