"""Ahead-of-time compilation: all kernels pass, planted faults are found, and it is Triton's own launch that decides.

Each command is a process of its own, since kernels of a test session are interpreted where there is no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.aot import CHIPS, QUICK, late_wait, occupancy
from benchmarks.kernels.catalogue import FAMILIES, all_cases

ROOT = Path(__file__).parents[2]


def compiling(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def found() -> Any:
    done = compiling("tests.benchmarks.faulty")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel(tmp_path: Path) -> None:
    """On the two chips of the quick set."""
    done = compiling("benchmarks.aot", "--json", str(tmp_path / "aot.json"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = json.loads((tmp_path / "aot.json").read_text())["results"]
    assert {row["capability"] for row in rows} == set(QUICK)
    assert not any(row["faults"] for row in rows)
    for family in FAMILIES:
        assert {case.name for case in all_cases([family])} & {row["case"] for row in rows}, family


def test_every_kernel_waits_for_those_before_it(tmp_path: Path) -> None:
    """Where it is started while they end."""
    done = compiling("benchmarks.aot", "--dependent", "--chip", "90", "--json", str(tmp_path / "aot.json"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = json.loads((tmp_path / "aot.json").read_text())["results"]
    for family in FAMILIES:
        assert {case.name for case in all_cases([family])} & {row["case"] for row in rows}, family


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("nothing", None),
        ("float32 multiplied in float32", None),
        ("spills", "bytes of registers spilled"),
        ("too much shared memory", "bytes of shared memory, the chip has 101376"),
        ("bfloat16 multiplied in float32", "a matrix product without tensor-core instructions"),
        ("a type that sm_86 does not have", "does not compile: CompilationError"),
        ("waits", None),
        ("waits late", "memory is touched before earlier kernels are waited for"),
        ("may end before", "memory is touched before earlier kernels are waited for"),
        ("never waits", "memory is touched before earlier kernels are waited for"),
        ("calls the next first", "the next kernel is called before earlier ones are waited for"),
    ],
)
def test_faults(found: Any, kernel: str, fault: str | None) -> None:
    faults = found["compiled"][kernel]["faults"]
    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


@pytest.mark.parametrize(
    ("before", "sound"),
    [
        ("ld.param.b64 %rd1, [f_param_0];", True),
        ("mov.u32 %r1, %ctaid.x;  // bra, ld.global.b32", True),
        ("st.shared.b32 [%r1], %r2;", True),
        ("ld.volatile.shared::cta.b32 %r2, [%r1];", True),
        ("ld.global.b32 %r1, [%rd1];", False),
        ("@%p1 ld.global.L1::evict_last.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];", False),
        ("ld.acquire.gpu.global.b32 %r1, [%rd1];", False),
        ("ld.b32 %r1, [%rd1];", False),  # of any space
        ("ld.weak.v2.f32 {%f1, %f2}, [%rd1];", False),
        ("ldu.global.b32 %r1, [%rd1];", False),
        ("st.relaxed.gpu.b32 [%rd1], %r1;", False),
        ("atom.global.gpu.acq_rel.add.s32 %r1, [%rd1], 1;", False),
        ("red.add.s32 [%rd1], 1;", False),
        ("multimem.ld_reduce.relaxed.sys.global.add.f32 %f1, [%rd1];", False),
        ("cp.async.cg.shared.global [%r1], [%rd1], 16;", False),
        ("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier [%r1], [%rd1], [%r2];", False),
        ("prefetch.global.L2 [%rd1];", False),
        ("@%p1 bra $L__BB0_2;", False),
        ("@%p1 ret;", False),
        ("call.uni (%r1), f, (%r2);", False),
    ],
)
def test_what_may_come_before_the_wait(before: str, sound: bool) -> None:
    assert (late_wait(f"{before}\ngriddepcontrol.wait; // dummy %r9\nld.global.b32 %r1, [%rd1];\nret;") == "") == sound


def test_tensor_cores_are_told(found: Any) -> None:
    assert found["compiled"]["nothing"]["tensor_cores"] == "mma"
    assert found["compiled"]["float32 multiplied in float32"]["tensor_cores"] == ""


def test_arguments_without_values_are_specialised_as_those_with(found: Any) -> None:
    assert found["specialisations"]["meta"] == found["specialisations"]["cpu"]
    assert len(set(found["specialisations"]["meta"])) == 5


@pytest.mark.parametrize(
    ("capability", "warps", "registers", "shared", "expected"),
    [
        (90, 8, 32, 0, 64),  # full
        (90, 4, 128, 0, 16),  # 65536 registers / 128 / 32
        (90, 4, 129, 0, 12),  # 136 are given out: 3 warps in each quarter
        (90, 1, 16, 0, 32),  # 32 programs
        (86, 1, 16, 0, 16),
        (90, 4, 32, 100 * 1024, 8),  # 2 programs in 228 KiB
        (90, 4, 32, 113 * 1024, 8),
        (90, 4, 32, 114 * 1024, 4),  # 1 KiB of each program is the system's
        (86, 4, 32, 50 * 1024, 4),
        (86, 16, 255, 0, 0),  # 16 warps of 256 registers do not fit
    ],
)
def test_occupancy(capability: int, warps: int, registers: int, shared: int, expected: int) -> None:
    """In warps at once, of what the vendor's tables of compute capabilities say that a processor holds."""
    chip = next(chip for chip in CHIPS if chip.capability == capability)
    assert occupancy(chip, warps, registers, shared) * chip.warps == expected
