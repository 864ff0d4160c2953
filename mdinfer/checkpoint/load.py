"""Carries out a plan: weights copied block by block, converted on the device they go to.

Beyond the parameters it holds one block in its stored and its computed form, and for a GPU those that are read ahead,
never a whole tensor of a layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from contextlib import closing as closing_early
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mdinfer.checkpoint.ahead import read_ahead
from mdinfer.checkpoint.plan import Fill
from mdinfer.checkpoint.quantise import FP8, dequantise_rows, quantise_channels, quantise_groups, quantise_rows
from mdinfer.checkpoint.safetensors_file import SafetensorsReader
from mdinfer.checkpoint.tensors import Block, Buffer, Reader, Stored, blocks, extent, one_thread
from mdinfer.checkpoint.torch_file import SUFFIXES, TorchReader
from mdinfer.errors import CheckpointError
from mdinfer.kernels.int4 import INT4
from mdinfer.kernels.int8 import INT8

# Elements of a block. On a CPU a block and its copies should stay in the second-level cache; a GPU wants
# copies that are long against the time it takes to start one.
_CPU_BLOCK, _GPU_BLOCK = 1 << 20, 1 << 23
# glibc gives memory back to the system once as much lies free as twice the largest piece that it ever took from there
# by itself, of 32 MiB at most. Freeing one of this size has it keep a block's temporaries: int4 4 times as fast.
_KEPT = 31 << 20
# For a GPU: threads that read, and blocks that they are ahead. Not measured on one.
_THREADS, _AHEAD = 4, 6


def carry_out(fills: Sequence[Fill], *, progress: bool, filled: Callable[[str], None] | None = None) -> None:
    """Copy everything, in the order of the bytes in the files. `filled` is told each parameter when all of it is there.

    Raises CheckpointError if a file ends early or a tensor holds NaN or infinity; the parameters are then
    partly filled.
    """
    order = sorted(fills, key=lambda fill: (str(fill.source.file), fill.source.offset))
    left: Counter[str] = Counter()
    for fill in fills:
        left[fill.parameter] += fill.source.nbytes
    buffers, own = _buffers(fills), Buffer()
    torch.empty(_KEPT, dtype=torch.uint8)  # made and freed
    readers: dict[Path, Reader] = {}
    with (
        torch.inference_mode(),
        one_thread(),
        ExitStack() as closing,
        tqdm(total=left.total(), desc="loading weights", unit="B", unit_scale=True, disable=not progress) as bar,
    ):

        def reader(stored: Stored) -> Reader:
            if stored.file not in readers:
                kind = TorchReader if stored.file.suffix in SUFFIXES else SafetensorsReader
                readers[stored.file] = kind(stored.file)
                closing.callback(readers[stored.file].close)
            return readers[stored.file]

        jobs = ((fill, reader(fill.source), fill.source, block) for fill in order for block in _blocks(fill))
        of = None
        for fill, block, values in closing.enter_context(closing_early(read_ahead(jobs, buffers, threads=_THREADS))):
            if fill is not of:
                of, scale = fill, _scales(fill.scale, reader, fill.into.device, own) if fill.scale else None
            _copy(fill, block, values.to(fill.into.device), scale)
            bar.update(values.nbytes)
            left[fill.parameter] -= values.nbytes
            if filled and not left[fill.parameter]:
                filled(fill.parameter)


def _buffers(fills: Sequence[Fill]) -> list[Buffer]:
    """One for a CPU, where reading takes the core that converts; for a GPU some, pinned, that are read ahead."""
    if not any(fill.into.is_cuda for fill in fills):
        return [Buffer()]
    largest = max(math.prod(extent(f.source.shape, b)[1]) * f.source.dtype.itemsize for f in fills for b in _blocks(f))
    return [Buffer(pinned=True, size=largest) for _ in range(_AHEAD + 1)]


def _blocks(fill: Fill) -> Iterator[Block]:
    return blocks(fill.source.shape, _GPU_BLOCK if fill.into.is_cuda else _CPU_BLOCK)


def _copy(fill: Fill, block: Block, values: Tensor, scale: Tensor | None) -> None:
    """Fill a block of a parameter with values as stored, on its device; the host has waited for them when it ends."""
    into = fill.into
    if fill.scale_into is not None:
        _quantise(values, None if scale is None else scale[block], into[block], fill.scale_into[block])
        sound = _finite(into[block]) and _finite(fill.scale_into[block])
    else:
        into[block].copy_(values if scale is None else dequantise_rows(values, scale[block]))
        sound = _finite(into[block])
    if not sound:
        raise CheckpointError(_fault(fill.source, values, into.dtype))


def _quantise(values: Tensor, scale: Tensor | None, into: Tensor, scale_into: Tensor) -> None:
    """float8 values go into float8 as they are, with their scales; all else is quantised."""
    if into.dtype in (INT4, INT8):
        quantise = quantise_groups if into.dtype is INT4 else quantise_channels
        values, scale = quantise(values if scale is None else dequantise_rows(values, scale))
    elif scale is None:
        values, scale = quantise_rows(values)
    into.copy_(values)
    scale_into.copy_(scale)


def _scales(stored: Stored, reader: Callable[[Stored], Reader], device: torch.device, buffer: Buffer) -> Tensor:
    """All scales of a weight, float32 on `device`. Raises CheckpointError if one is not finite."""
    scale = torch.empty(stored.shape, dtype=torch.float32, device=device)
    for block in blocks(stored.shape, _CPU_BLOCK):
        scale[block].copy_(reader(stored).read(stored, block, buffer))
    if not _finite(scale):
        raise CheckpointError(_fault(stored, scale, scale.dtype))
    return scale


def _finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    A sum carries both through at the speed of memory (isfinite is 80 times slower on a CPU); one that
    overflows is looked at again. e4m3 has no infinity and one NaN, all bits set but the sign.
    """
    if values.dtype in (INT4, INT8):
        return True
    if values.dtype is FP8:
        return int((values.view(torch.uint8) & 0x7F).max()) != 0x7F
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _fault(stored: Stored, values: Tensor, dtype: torch.dtype) -> str:
    if _finite(values):
        return f"tensor {stored.name} has values too large for {dtype}: load it as float32"
    return f"tensor {stored.name} holds NaN or infinity, expected finite values: download its file again"
