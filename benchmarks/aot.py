"""Compile every kernel ahead of time, without a GPU, for the chips it may run on: `python -m benchmarks.aot`.

Each case of `benchmarks.kernels` is called on tensors without values for each chip, so that the launchers choose
the configuration they would choose there. What they launch goes through Triton's own path as far as the loading of
the code, so that what is inspected (and left in Triton's cache) is what that chip would run. Fails on a spill, on
more shared memory than the chip has, and on a matrix product without tensor-core instructions. With `--dependent` of
kernels that are started while those before them end, which have to wait for these before they touch memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from benchmarks.kernels.case import Case
from benchmarks.kernels.catalogue import FAMILIES, all_cases
from benchmarks.report import table, write_json
from mdinfer.kernels._triton.launch import (
    INTERPRETED,
    Launch,
    Target,
    compile_options,
    launch_dependently,
    recorded,
)

KIB = 1024


@dataclass(frozen=True)
class Chip:
    """What the vendor documents of one compute capability; `warps` and `programs` are what one processor can hold."""

    name: str
    target: Target
    warps: int
    programs: int

    @property
    def capability(self) -> int:
        return self.target.capability

    # What Triton asks a driver for before it loads code

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels keep what they have compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


def _chip(name: str, capability: int, processors: int, shared: int, warps: int, programs: int) -> Chip:
    return Chip(name, Target(capability=capability, processors=processors, shared=shared * KIB), warps, programs)


CHIPS = (
    _chip("A100", 80, 108, 163, 64, 32),
    _chip("RTX 3090", 86, 82, 99, 48, 16),
    _chip("RTX 4090", 89, 128, 99, 48, 24),
    _chip("H100", 90, 132, 227, 64, 32),
    _chip("B200", 100, 148, 227, 64, 32),
    _chip("RTX 5090", 120, 170, 99, 48, 24),
)
QUICK = (86, 90)  # the smallest shared memory and no e4m3 instructions; the chip that goals are set for

_TENSOR_CORES = re.compile(r"\b(?:(wgmma)\.mma_async|(tcgen05)\.mma|(mma)\.(?:sync|sp))\b")
# What may not come before the wait. An access that names no space may go anywhere; one to shared memory is its own.
_TOUCHES = re.compile(
    r"\b(?:ldu?|st|atom|red|multimem)\.(?!(?:\w+\.)*(?:param|shared|const|local)\b)"
    r"|\b(?:cp|prefetchu?|discard|applypriority|tensormap)\.|\b(?:bra|brx|call|ret|exit|trap)\b"
)
_WAIT, _CALL_NEXT = "griddepcontrol.wait;", "griddepcontrol.launch_dependents;"
_NARROW = ("*bf16", "*fp16", "*fp8e4nv", "*fp8e5")
_TENSOR_MEMORY = 512  # columns that a processor of sm_100 has


@dataclass(frozen=True)
class Compiled:
    """One kernel on one chip; `occupancy` is the share of a processor's warps that registers and memory allow."""

    kernel: str
    case: str
    capability: int
    warps: int
    stages: int
    registers: int = 0
    stack: int = 0
    shared: int = 0
    occupancy: float = 0.0
    tensor_cores: str = ""
    faults: tuple[str, ...] = ()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every chip, not only sm_86 and sm_90")
    parser.add_argument("--chip", type=int, action="append", help="a compute capability, such as 90; repeatable")
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), help="only these kernels; repeatable")
    parser.add_argument("--dependent", action="store_true", help="as programmatic dependent launch starts them")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    parser.add_argument("--json", metavar="FILE", help="write everything found")
    options = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("nothing is compiled while TRITON_INTERPRET=1 is set")
    wanted = options.chip or (None if options.all else QUICK)
    chips = [chip for chip in CHIPS if wanted is None or chip.capability in wanted]
    launch_dependently(options.dependent)
    found = compile_all(all_cases(options.family), chips, options.jobs)
    print(_table(found))
    faults = [row for row in found if row.faults]
    for row in faults:
        print(f"FAULT {row.kernel} ({row.case}) on sm_{row.capability}: {'; '.join(row.faults)}")
    print(f"{len(found)} kernels compiled for {len(chips)} chips, {len(faults)} with faults")
    write_json(options.json, {"benchmark": "aot", "triton": triton.__version__, "results": [asdict(r) for r in found]})
    return 1 if faults or not found else 0


def compile_all(cases: list[Case], chips: Iterable[Chip], jobs: int = 1) -> list[Compiled]:
    """Every distinct launch of the cases on every chip."""
    work = [(chip, case.name, launch) for chip in chips for case, launch in distinct(cases, chip)]
    if jobs == 1 or len(work) < 2:
        return [inspect(*item) for item in work]
    # Kernels cannot be pickled: forked processes find them in the list they inherit.
    _work[:] = work
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        return pool.map(_inspect_nth, range(len(work)), chunksize=1)


def distinct(cases: list[Case], chip: Chip) -> list[tuple[Case, Launch]]:
    """The launches that Triton compiles to different code, each with the first case that makes it."""
    seen: dict[object, tuple[Case, Launch]] = {}
    for case in cases:
        for launch in launches(case, chip):
            seen.setdefault(variant(launch, chip), (case, launch))
    return list(seen.values())


def variant(launch: Launch, chip: Chip) -> object:
    """Equal for two launches of a kernel if the same code serves both."""
    driver.set_active(chip)
    *_, bind = launch.kernel.device_caches[chip.capability]
    _, specialisation, _ = bind(*launch.args, **launch.constants)
    return launch.kernel, repr(specialisation), launch.warps, launch.stages


def launches(case: Case, chip: Chip) -> list[Launch]:
    """What the case would start on the chip."""
    with recorded(run=False, target=chip.target) as found:
        case.run(*case.inputs(torch.device("meta")))
    return list(found)


def inspect(chip: Chip, case: str, launch: Launch) -> Compiled:
    """Compile one launch and look at what came out."""
    row = Compiled(launch.name, case, chip.capability, launch.warps, launch.stages)
    try:
        compiled = compile_launch(chip, launch)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        return replace(row, faults=(f"does not compile: {type(error).__name__}: {said[-1][:200]}",))
    registers, stack = _resources(compiled.asm["cubin"])
    shared, columns = compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", None) or 0
    cores = _TENSOR_CORES.search(compiled.asm["ptx"])
    faults = []
    if stack:
        faults.append(f"{stack} bytes of registers spilled")
    if shared > chip.target.shared:
        faults.append(f"{shared} bytes of shared memory, the chip has {chip.target.shared}")
    if launch.constants["PDL"] and (fault := late_wait(compiled.asm["ptx"])):
        faults.append(fault)
    if columns > _TENSOR_MEMORY:
        faults.append(f"{columns} columns of tensor memory, the chip has {_TENSOR_MEMORY}")
    if _slow_products(compiled.asm["ttgir"]) and any(kind in _NARROW for kind in compiled.src.signature.values()):
        faults.append("a matrix product without tensor-core instructions")
    return replace(
        row,
        registers=registers,
        stack=stack,
        shared=shared,
        occupancy=occupancy(chip, launch.warps, registers, shared, columns),
        tensor_cores=next(filter(None, cores.groups())) if cores else "",
        faults=tuple(faults),
    )


def compile_launch(chip: Chip, launch: Launch) -> Any:
    """Triton's compiled kernel for the chip, from its cache where it is there."""
    driver.set_active(chip)
    options = compile_options(launch.warps, launch.stages, launch.constants["PDL"])
    return launch.kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.constants, **options)


def occupancy(chip: Chip, warps: int, registers: int, shared: int, columns: int = 0) -> float:
    """The share of a processor's warps that run at once, for programs of `warps` that take this much each.

    Registers come in 256 a warp from one of four files of 16384; shared memory in 128 bytes, of a total that is
    1 KiB more than one program may have, with 1 KiB kept for each program.
    """
    per_warp = 32 * -(-max(registers, 1) // 8) * 8
    programs = [
        chip.programs,
        chip.warps // warps,
        4 * (16384 // per_warp) // warps,
        (chip.target.shared + KIB) // (-(-shared // 128) * 128 + KIB),
    ]
    if columns:
        programs.append(_TENSOR_MEMORY // columns)
    return min(programs) * warps / chip.warps


def late_wait(ptx: str) -> str:
    """What comes before the wait for earlier kernels that must not, or "".

    A branch might go past it. And the next kernel waits for this one alone: were it called first, it could find those
    before this one still at work.
    """
    before, wait, _ = re.sub("//.*", "", ptx).partition(_WAIT)
    if not wait or _TOUCHES.search(before):
        return "memory is touched before earlier kernels are waited for"
    return "the next kernel is called before earlier ones are waited for" if _CALL_NEXT in before else ""


def _slow_products(ttgir: str) -> bool:
    """Whether a product is left to ordinary arithmetic.

    Triton does so with float32 at full precision, which is right for a float32 model and for no other.
    """
    return any("parent = #blocked" in line for line in ttgir.splitlines() if " tt.dot " in line)


_work: list[tuple[Chip, str, Launch]] = []


def _inspect_nth(i: int) -> Compiled:
    return inspect(*_work[i])


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack (where spills go), as Triton's own cuobjdump reports them."""
    tool = Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+)", done.stdout), re.search(r"STACK:(\d+)", done.stdout)
    assert registers and stack, done.stdout
    return int(registers[1]), int(stack[1])


def _table(rows: list[Compiled]) -> str:
    return table(
        ["kernel", "case", "sm", "warps", "stages", "regs", "spill", "shared KiB", "occupancy %", "tensor cores"],
        [
            [
                r.kernel,
                r.case,
                r.capability,
                r.warps,
                r.stages,
                r.registers,
                r.stack,
                round(r.shared / KIB, 1),
                round(100 * r.occupancy),
                r.tensor_cores or "-",
            ]
            for r in sorted(rows, key=lambda r: (r.kernel, r.case, r.capability))
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
