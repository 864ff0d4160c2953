"""The one door through which kernels are started: for a GPU, for the interpreter, or only to be written down.

Triton compiles a kernel anew where an integer becomes 1 or a multiple of 16, or a pointer leaves 16-byte alignment. Of
what changes from step to step (counts, and index tensors that may be parts of one upload) kernels are therefore told
nothing: `do_not_specialize`. `benchmarks/variants.py` counts what is left.

`launch_dependently` has kernels of a thread started while those before them end; see `dependent.py`.

`recorded` collects every launch, which serves to count them, and, with tensors on "meta", to compile each kernel
ahead of time for a GPU that is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_DOT_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, slots=True)
class Config:
    """How a kernel is cut: its block sizes by their constexpr names, warps of a program, stages of its loops."""

    blocks: dict[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True, slots=True)
class Target:
    """What decides how a kernel is configured.

    capability   compute capability, 90 for 9.0; 0 is the interpreter
    processors   streaming multiprocessors
    shared       bytes of shared memory that one program may take
    """

    capability: int
    processors: int
    shared: int

    @property
    def native_fp8(self) -> bool:
        """Whether e4m3 is converted by instructions; elsewhere by integer operations, see `float8.py`."""
        return self.capability >= 89

    @property
    def asynchronous_dot(self) -> bool:
        """Whether `tl.dot` becomes wgmma or tcgen05; elsewhere it is the older mma, with all operands in registers."""
        return 90 <= self.capability < 120


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a kernel: everything its compilation depends on, and the grid."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


@dataclass(frozen=True, slots=True)
class _Recording:
    launches: list[Launch]
    run: bool


_recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)
_meta_target: ContextVar[Target | None] = ContextVar("meta_target", default=None)
_dependent: ContextVar[bool] = ContextVar("dependent", default=False)


@contextmanager
def recorded(*, run: bool = True, target: Target | None = None) -> Iterator[list[Launch]]:
    """Collect the launches made within, by this thread. Without `run` none is carried out.

    `target` is what tensors on "meta" pretend to lie on.
    """
    recording = _Recording([], run)
    tokens = _recording.set(recording), _meta_target.set(target)
    try:
        yield recording.launches
    finally:
        _recording.reset(tokens[0])
        _meta_target.reset(tokens[1])


def launch_dependently(on: bool) -> None:
    """For this thread's launches from now on, where the GPU can (compute capability 9.0 or later)."""
    _dependent.set(on)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, config: Config, **constants: Any) -> None:
    """Start `kernel` on the device of its tensors; an empty grid is passed over.

    `args` are the kernel's run-time arguments in order, a tensor first, `constants` its constexprs besides those of
    `config` and PDL.
    """
    if 0 in grid:
        return
    pdl = _dependent.get() and target_of(args[0]).capability >= 90
    constants = {**constants, **config.blocks, "PDL": pdl}
    recording = _recording.get()
    if recording is not None:
        recording.launches.append(Launch(kernel, grid, args, constants, config.warps, config.stages))
        if not recording.run:
            return
    with torch.cuda.device(args[0].get_device()):  # of several GPUs Triton takes the current one
        kernel[grid](*args, **constants, **compile_options(config.warps, config.stages, pdl))


def compile_options(warps: int, stages: int, pdl: bool) -> dict[str, Any]:
    """What Triton takes beside a kernel's own arguments; its interpreter knows no `launch_pdl`."""
    return {"num_warps": warps, "num_stages": stages, **({"launch_pdl": True} if pdl else {})}


def assert_dense(*tensors: torch.Tensor | None) -> None:
    """For tensors that a kernel goes through by their shape alone: one that lies otherwise would give wrong numbers."""
    for x in tensors:
        assert x is None or x.is_contiguous(), f"shape {tuple(x.shape)} with strides {x.stride()}"


def target_of(x: torch.Tensor) -> Target:
    """The target that kernels on `x` are configured for."""
    if x.is_cuda:
        return _cuda_target(x.device.index or 0)
    if x.is_meta:
        target = _meta_target.get()
        assert target is not None, "tensors on meta need recorded(target=...)"
        return target
    return Target(capability=0, processors=1, shared=1 << 30)


@cache
def _cuda_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    return Target(
        capability=properties.major * 10 + properties.minor,
        processors=properties.multi_processor_count,
        shared=int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)),
    )


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type that operands of `tl.dot` are brought to; the interpreter's bfloat16 arithmetic is wrong."""
    return tl.float32 if INTERPRETED else _DOT_TYPES[dtype]


def power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least `n`."""
    return int(triton.next_power_of_2(n))
