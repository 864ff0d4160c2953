"""Every kernel at the model's real shapes against its twin: `python -m benchmarks.kernels.check`.

Inputs are drawn anew each time, whatever memory a kernel allocates is poisoned first, and repeated calls on equal
inputs must give equal bits, without a wait for the GPU. Exits with 1 unless all pass.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite, sqrt
from typing import Any

import torch

from benchmarks.kernels.apart import Record, each
from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.command import chosen, named, on_gpu, parser
from benchmarks.report import environment, table, write_json

CALLS = 3
ROW = 16
"""How often the bound one row may be off: among thousands, one that is wrong altogether hardly moves the whole."""
_CHUNK = 1 << 23  # elements compared at a time, in float64


def main(argv: list[str] | None = None) -> int:
    arguments = parser("check", __doc__.partition("\n")[0])
    arguments.add_argument("--seed", type=int, help="repeat the draws of an earlier run")
    options = arguments.parse_args(argv)
    seed = torch.seed() % 2**31 if options.seed is None else options.seed
    names = [case.name for case in chosen(options)]
    items = [(name, options.device, seed) for name in names]
    found = each(_check_named, items, apart=on_gpu(options.device), budget_s=options.budget)
    records = [{"case": name, **record} for name, record in zip(names, found, strict=True)]
    print(_table(records))
    faults = [record for record in records if record["fault"]]
    for record in faults:
        print(f"FAULT {record['case']}: {record['fault']}")
    print(f"{len(records)} cases, {len(faults)} with faults, seed {seed}")
    where = environment(torch.device(options.device))
    write_json(options.json, {"benchmark": "check", "environment": where, "seed": seed, "results": records})
    return 1 if faults or not records else 0


def _check_named(name: str, device: str, seed: int) -> Record:
    if on_gpu(device):
        torch.cuda.empty_cache()
    return check_case(named(name), torch.device(device), seed)


@torch.inference_mode()
def check_case(case: Case, device: torch.device, seed: int) -> Record:
    """error and worst (see `errors`, the largest of all results), bound, seconds, and the fault found or ""."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    inputs = case.inputs(device)
    first = _run(case, inputs, nullcontext())  # compiles, and may wait for it
    around = _no_waiting if device.type == "cuda" else nullcontext
    repeated = all(_same_bits(first, _run(case, inputs, around())) for _ in range(CALLS - 1))
    twin = tensors(case.twin(*inputs))
    assert len(first) == len(twin) > 0, f"{len(first)} results, the twin has {len(twin)}"
    found = [errors(a, b) for a, b in zip(first, twin, strict=True)]
    error, worst = (max((pair[i] for pair in found), key=lambda e: (e != e, e)) for i in (0, 1))
    fault = ""
    if not (isfinite(error) and isfinite(worst)):
        fault = "results that are not numbers"
    elif error > case.bound:
        fault = f"the error is {error:.1e}, the bound {case.bound:.1e}: {case.why}"
    elif worst > ROW * case.bound:
        fault = f"a row is off by {worst:.1e}, all by {error:.1e}"
    elif not repeated:
        fault = "not the same bits each time"
    return {
        "error": error if isfinite(error) else None,
        "worst": worst if isfinite(worst) else None,
        "bound": case.bound,
        "seconds": time.perf_counter() - start,
        "fault": fault,
    }


def errors(found: torch.Tensor, twin: torch.Tensor) -> tuple[float, float]:
    """The relative RMS error, and the largest one of a row (along the last dimension), of the same RMS.

    Of whole numbers, the share that differs. NaN wherever there is one; infinities must be equal.
    """
    assert found.shape == twin.shape, f"a result has the shape {tuple(found.shape)}, the twin's {tuple(twin.shape)}"
    if not found.numel():
        return 0.0, 0.0
    if not (found.is_floating_point() and twin.is_floating_point()):
        share = (found != twin).double().mean().item()
        return share, share
    width = found.shape[-1] if found.dim() > 1 else 1
    found, twin = found.reshape(-1, width), twin.reshape(-1, width)
    error, size, worst = 0.0, 0.0, 0.0
    rows = max(1, _CHUNK // width)
    for start in range(0, len(found), rows):
        a, b = (t[start : start + rows].double() for t in (found, twin))
        squares = torch.where(a == b, 0.0, a - b).square().sum(-1)
        error += squares.sum().item()
        worst = max(worst, squares.max().item(), key=lambda e: (e != e, e))
        size += torch.where(b.isfinite(), b, 0.0).square().sum().item()
    if not size:
        return (0.0, 0.0) if error == 0 else (float("inf"), float("inf"))
    return sqrt(error / size), sqrt(worst / width / (size / found.numel()))


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written yet is NaN, or the largest whole number."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _run(case: Case, inputs: Inputs, around: AbstractContextManager[None]) -> list[torch.Tensor]:
    """The kernel's results on a copy of the inputs, for some are written to."""
    own = copy.deepcopy(inputs)
    with poisoned(), around:
        results = case.run(*own)
    return tensors(case.seen(results, *own) if case.seen else results)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """An error on whatever makes the host wait for the GPU: no graph can hold it."""
    torch.cuda.synchronize()  # with what went wrong before
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def tensors(results: Any) -> list[torch.Tensor]:
    """All tensors of a result, in order."""
    if results is None:
        return []
    if isinstance(results, torch.Tensor):
        return [results]
    return [tensor for part in results for tensor in tensors(part)]


def _same_bits(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))


def _table(records: list[Record]) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}"

    return table(
        ["case", "error", "worst row", "bound", "seconds", ""],
        [
            [
                record["case"],
                *(number(record.get(key)) for key in ("error", "worst", "bound")),
                float(record.get("seconds", 0)),
                "FAULT" if record["fault"] else "ok",
            ]
            for record in records
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
