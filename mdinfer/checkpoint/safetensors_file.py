"""Safetensors files: what their headers promise, checked against the file, and their bytes.

A file is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}},
and the tensors' bytes. They are read with plain reads, not mapped: the pages of a mapping count as memory
of the process, and a whole checkpoint's would double it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from mdinfer.checkpoint.tensors import Block, Buffer, Stored, extent
from mdinfer.errors import CheckpointError

_MAX_HEADER = 100_000_000  # the format's own limit, bytes
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DAMAGED = "the file is damaged or not safetensors; download it again"


def read_headers(files: list[Path]) -> tuple[Stored, ...]:
    """The tensors of one or more files. Raises CheckpointError, also if two files hold the same name."""
    tensors: dict[str, Stored] = {}
    for file in files:
        for stored in read_header(file):
            if (other := tensors.setdefault(stored.name, stored)) is not stored:
                raise CheckpointError(
                    f"tensor {stored.name} is in {other.file.name} and again in {file.name}: it must be in "
                    "one file only; remove the file that is not of this checkpoint, or download it again"
                )
    return tuple(tensors.values())


def read_header(file: Path) -> list[Stored]:
    """The tensors of one file, in the order of their bytes. Raises CheckpointError."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise CheckpointError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull`")
            if len(start) < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise CheckpointError(f"{file}: no valid header in its {size} bytes: {_DAMAGED}")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): check the path and its rights") from error
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is not valid JSON ({error}): {_DAMAGED}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is not a JSON object: {_DAMAGED}")
    header.pop("__metadata__", None)
    tensors = [_entry(file, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda stored: stored.offset)
    _check_extents(file, tensors, 8 + length, size)
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = value
    return found


def _entry(file: Path, name: str, entry: object, data: int) -> Stored:
    """One tensor of a header; `data` is the place where the file's tensors begin."""
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{file}: the header's entry of {name} is not an object: {_DAMAGED}")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"tensor {name} in {file.name} has type {dtype}: expected one of F32, BF16, F16, F8_E4M3")
    if not _naturals(shape) or not _naturals(span) or len(span) != 2:
        raise CheckpointError(f"{file}: the header's entry of {name} has no valid shape and offsets: {_DAMAGED}")
    stored = Stored(name=name, dtype=_DTYPES[dtype], shape=tuple(shape), file=file, offset=data + span[0])
    if span[1] - span[0] != stored.nbytes:
        raise CheckpointError(
            f"tensor {name} in {file.name}: shape {stored.shape} of {dtype} takes {stored.nbytes} bytes, the "
            f"header gives it {span[1] - span[0]}: {_DAMAGED}"
        )
    return stored


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(i) is int and 0 <= i < 1 << 62 for i in value)


def _check_extents(file: Path, tensors: list[Stored], data: int, size: int) -> None:
    """Tensors, in the order of their bytes, must follow each other and end where the file ends."""
    end, last = data, "the header"
    for stored in tensors:
        if stored.offset < end:
            raise CheckpointError(f"tensor {stored.name} in {file.name} overlaps {last}: {_DAMAGED}")
        end, last = stored.offset + stored.nbytes, stored.name
        if end > size:
            raise CheckpointError(
                f"tensor {stored.name} should end at byte {end} of {file.name}, which has {size} bytes: "
                "the file is truncated; download it again"
            )
    if end != size:
        raise CheckpointError(f"{file} has {size} bytes, its header describes {end}: {_DAMAGED}")


def read_index(index: Path) -> tuple[Stored, ...]:
    """The tensors of all shards an index names. Raises CheckpointError if index and shards disagree."""
    try:
        raw = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read ({error.strerror}): check the path and its rights") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is not valid JSON ({error}): download it again") from error
    shard_of = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(s, str) for s in shard_of.values()):
        raise CheckpointError(f'{index} has no "weight_map" of tensor names to files: download it again')
    shards = sorted(set(shard_of.values()))
    for shard in shards:
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise CheckpointError(
                f"{index.name} names {shard!r}, which is not a file in {index.parent}: download it again, "
                f"all {len(shards)} shards"
            )
    tensors = read_headers([index.parent / shard for shard in shards])
    found = {stored.name: stored.file.name for stored in tensors}
    for name in sorted(shard_of.keys() | found.keys()):
        if shard_of.get(name) != found.get(name):
            listed, held = shard_of.get(name, "no file"), found.get(name, "no file")
            raise CheckpointError(
                f"tensor {name}: {index.name} says it is in {listed}, the shards say {held}: "
                "index and shards are of different checkpoints; download them again"
            )
    return tensors


class SafetensorsReader:
    """Reads blocks of one file's tensors. Raises CheckpointError if it cannot be opened."""

    def __init__(self, file: Path) -> None:
        try:
            self._stream = file.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be opened ({error.strerror}): was it moved?") from error

    def read(self, stored: Stored, block: Block, buffer: Buffer) -> Tensor:
        first, shape = extent(stored.shape, block)
        values = buffer.hold(shape, stored.dtype)
        target = values.view(torch.uint8).numpy().data.cast("B")
        place = stored.offset + first * stored.dtype.itemsize
        try:
            while target:
                count = os.preadv(self._stream.fileno(), [target], place)
                if not count:
                    raise CheckpointError(
                        f"tensor {stored.name}: {stored.file.name} ends inside it: the file is "
                        "truncated, and was whole when its header was read; download it again"
                    )
                target, place = target[count:], place + count
        except OSError as error:
            raise CheckpointError(
                f"tensor {stored.name} cannot be read from {stored.file} ({error.strerror}): check the disk, "
                "or download the file again"
            ) from error
        return values

    def close(self) -> None:
        self._stream.close()
