"""Kernels with the faults that ahead-of-time compilation must find, and what it says of them as JSON.

A command of its own, for in a test session kernels are interpreted: `python -m tests.benchmarks.faulty`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.driver import driver

from benchmarks.aot import CHIPS, Chip, compile_all
from benchmarks.kernels.case import Case
from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, launch, launch_dependently


@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, K, BLOCK: tl.constexpr, TYPE: tl.constexpr, PDL: tl.constexpr):
    wait_for_earlier(PDL)
    at = tl.arange(0, BLOCK)
    sum = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        a = tl.load(a_ptr + at[:, None] * K + start + at[None, :]).to(TYPE)
        b = tl.load(b_ptr + (start + at[:, None]) * BLOCK + at[None, :]).to(TYPE)
        sum = tl.dot(a, b, sum, input_precision="ieee")
    tl.store(out_ptr + at[:, None] * BLOCK + at[None, :], sum.to(out_ptr.dtype.element_ty))


@triton.jit
def centre_kernel(x_ptr, out_ptr, stride, N: tl.constexpr, PDL: tl.constexpr):
    wait_for_earlier(PDL)
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at * stride).to(tl.float32)
    tl.store(out_ptr + at, (x - tl.sum(x)).to(out_ptr.dtype.element_ty))


@triton.jit
def late_kernel(x_ptr, out_ptr, N: tl.constexpr, PDL: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    wait_for_earlier(PDL)
    tl.store(out_ptr + at, x)


@triton.jit
def branch_kernel(x_ptr, out_ptr, count, N: tl.constexpr, PDL: tl.constexpr):
    if tl.program_id(0) >= count:
        return
    wait_for_earlier(PDL)
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.load(x_ptr + at))


@triton.jit
def never_kernel(x_ptr, out_ptr, N: tl.constexpr, PDL: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.load(x_ptr + at))


@triton.jit
def early_call_kernel(x_ptr, out_ptr, N: tl.constexpr, PDL: tl.constexpr):
    gdc_launch_dependents()
    gdc_wait()
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.load(x_ptr + at))


def _product(dtype: torch.dtype, kind: Any, block: int, stages: int = 2) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        x = x.to(dtype)
        out = torch.empty(block, block, device=x.device, dtype=dtype)
        launch(product_kernel, (1,), x, x, out, 2048, TYPE=kind, config=Config({"BLOCK": block}, stages=stages))
        return out

    return run


def _centre(dtype: torch.dtype, size: int) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        x = x.to(dtype)
        launch(centre_kernel, (1,), x, x, 1, config=Config({"N": size}, warps=1))
        return x

    return run


RUNS: dict[str, Callable[..., torch.Tensor]] = {
    "nothing": _product(torch.bfloat16, tl.bfloat16, 64),
    "spills": _centre(torch.float32, 16384),
    "too much shared memory": _product(torch.bfloat16, tl.bfloat16, 64, stages=9),
    "bfloat16 multiplied in float32": _product(torch.bfloat16, tl.float32, 32),
    "float32 multiplied in float32": _product(torch.float32, tl.float32, 32),
    "a type that sm_86 does not have": _centre(torch.float8_e4m3fn, 64),
}


def _of(kernel: Any, *counts: int) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        launch(kernel, (2,), x, torch.empty_like(x), *counts, config=Config({"N": 64}))
        return x

    return run


DEPENDENT: dict[str, Callable[..., torch.Tensor]] = {
    "waits": _centre(torch.float32, 64),
    "waits late": _of(late_kernel),
    "may end before": _of(branch_kernel, 3),
    "never waits": _of(never_kernel),
    "calls the next first": _of(early_call_kernel),
}


def _cases(runs: dict[str, Callable[..., torch.Tensor]]) -> list[Case]:
    def inputs(device: torch.device) -> tuple[torch.Tensor]:
        return (torch.empty(1 << 18, device=device),)

    return [Case(op=name, shape="", inputs=inputs, run=run, twin=run, bound=0, why="") for name, run in runs.items()]


def _specialisations(chip: Chip, device: str) -> list[str]:
    """What Triton makes of arguments on a device, by alignment, size and value."""
    driver.set_active(chip)
    *_, bind = centre_kernel.device_caches[chip.capability]
    x = torch.empty(4096, dtype=torch.bfloat16, device=device)
    y = torch.empty(64, dtype=torch.uint8, device=device)
    calls = [(x, y, 1), (x[1:], y, 16), (x[8:], y[16:], 17), (x[::2], y[1:], 1 << 40), (x.view(64, 64)[3], None, 0)]
    return [repr(bind(*call, N=64, PDL=False)[1]) for call in calls]


def main() -> None:
    chip, hopper = (next(chip for chip in CHIPS if chip.capability == each) for each in (86, 90))
    rows = compile_all(_cases(RUNS), [chip])
    launch_dependently(True)
    rows += compile_all(_cases(DEPENDENT), [hopper])
    launch_dependently(False)
    json.dump(
        {
            "compiled": {row.case.removesuffix("[]"): asdict(row) for row in rows},
            "specialisations": {device: _specialisations(chip, device) for device in ("meta", "cpu")},
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
