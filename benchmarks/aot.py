"""Compile every kernel ahead of time, without a GPU, for the chips it may run on: `python -m benchmarks.aot`.

Each case of `benchmarks.kernels` is called on tensors without values for each chip, so that the launchers choose
the configuration they would choose there; what they launch is compiled and inspected. Fails on a spill, on more
shared memory than the chip has, and on a matrix product without tensor-core instructions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernels.case import Case
from benchmarks.kernels.catalogue import FAMILIES, all_cases
from mdinfer.kernels._triton.launch import Launch, Target, recorded

KIB = 1024


@dataclass(frozen=True)
class Chip:
    """What the vendor documents of one compute capability; `warps` is what one processor can hold."""

    name: str
    target: Target
    warps: int

    @property
    def capability(self) -> int:
        return self.target.capability


def _chip(name: str, capability: int, processors: int, shared: int, warps: int) -> Chip:
    return Chip(name, Target(capability=capability, processors=processors, shared=shared * KIB), warps)


CHIPS = (
    _chip("A100", 80, 108, 163, 64),
    _chip("RTX 3090", 86, 82, 99, 48),
    _chip("RTX 4090", 89, 128, 99, 48),
    _chip("H100", 90, 132, 227, 64),
    _chip("B200", 100, 148, 227, 64),
    _chip("RTX 5090", 120, 170, 99, 48),
)
QUICK = (86, 90)  # the smallest shared memory and no e4m3 instructions; the chip that goals are set for
_REGISTERS = 65536
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.float8_e4m3fn: "*fp8e4nv",
}


@dataclass(frozen=True)
class Compiled:
    """One kernel on one chip; `occupancy` is the share of a processor's warps that registers and memory allow."""

    kernel: str
    case: str
    chip: str
    capability: int
    warps: int
    stages: int
    registers: int
    stack: int
    shared: int
    occupancy: float
    tensor_cores: str
    faults: tuple[str, ...]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every chip, not only sm_86 and sm_90")
    parser.add_argument("--chip", type=int, action="append", help="a compute capability, such as 90; repeatable")
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), help="only these kernels; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    options = parser.parse_args(argv)
    wanted = options.chip or (None if options.all else QUICK)
    chips = [chip for chip in CHIPS if wanted is None or chip.capability in wanted]
    found = compile_all(all_cases(options.family), chips, options.jobs)
    print(_table(found))
    faults = [row for row in found if row.faults]
    for row in faults:
        print(f"FAULT {row.kernel} ({row.case}) on sm_{row.capability}: {'; '.join(row.faults)}")
    print(f"{len(found)} kernels compiled for {len(chips)} chips, {len(faults)} with faults")
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
    """The launches that compile to different code, each with the first case that makes it."""
    seen: dict[object, tuple[Case, Launch]] = {}
    for case in cases:
        for launch in launches(case, chip):
            signature, constants, attributes = specialised(launch)
            key = (launch.name, *map(repr, (signature, constants, attributes)), launch.warps, launch.stages)
            seen.setdefault(key, (case, launch))
    return list(seen.values())


def launches(case: Case, chip: Chip) -> list[Launch]:
    """What the case would start on the chip."""
    with recorded(run=False, target=chip.target) as found:
        case.run(*case.inputs(torch.device("meta")))
    return list(found)


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Signature, constants and attributes as Triton's own launch makes them of these arguments.

    Pointers are aligned to 16 bytes; an integer 1 is a constant, a multiple of 16 is marked as one.
    """
    names = launch.kernel.arg_names
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(launch.constants)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, (name, value) in enumerate(zip(names, launch.args, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    for name in names[len(launch.args) :]:
        signature[name] = "constexpr"
    return signature, constants, attributes


def inspect(chip: Chip, case: str, launch: Launch) -> Compiled:
    """Compile one launch and look at what came out."""
    signature, constants, attributes = specialised(launch)
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", chip.capability, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    registers, stack = _resources(compiled.asm["cubin"])
    shared, ptx = compiled.metadata.shared, compiled.asm["ptx"]
    found = re.search(r"\b(wgmma|tcgen05)\.mma|\bmma\.sync|\bwgmma\.mma_async", ptx)
    tensor_cores = found[0].split(".")[0] if found else ""
    faults = []
    if stack:
        faults.append(f"{stack} bytes of registers spilled")
    if shared > chip.target.shared:
        faults.append(f"{shared} bytes of shared memory, the chip has {chip.target.shared}")
    if "tt.dot" in compiled.asm["ttir"] and not tensor_cores:
        faults.append("a matrix product without tensor-core instructions")
    programs = min(
        chip.warps // launch.warps,
        _REGISTERS // (32 * launch.warps * max(1, -(-registers // 8) * 8)),
        chip.target.shared // shared if shared else chip.warps,
    )
    return Compiled(
        kernel=launch.name,
        case=case,
        chip=chip.name,
        capability=chip.capability,
        warps=launch.warps,
        stages=launch.stages,
        registers=registers,
        stack=stack,
        shared=shared,
        occupancy=programs * launch.warps / chip.warps,
        tensor_cores=tensor_cores,
        faults=tuple(faults),
    )


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
    head = ("kernel", "case", "sm", "warps", "stages", "regs", "spill", "shared", "occ", "mma")
    lines = ["{:32} {:36} {:>3} {:>6} {:>6} {:>5} {:>5} {:>7} {:>4}  {}".format(*head)]
    for r in sorted(rows, key=lambda r: (r.kernel, r.case, r.capability)):
        lines.append(
            f"{r.kernel:32} {r.case:36} {r.capability:3} {r.warps:6} {r.stages:6} {r.registers:5} {r.stack:5} "
            f"{r.shared / KIB:6.1f}K {r.occupancy:4.0%}  {r.tensor_cores or '-'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
