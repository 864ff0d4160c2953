"""`.pt` files: the state dict in them, and its bytes.

A `.pt` file is only opened with `weights_only=True`, which runs no code of the file, and mapped, which
copies nothing. The pages touched in a mapping count as memory of the process until it is dropped, so the
file is opened anew after every `_MAPPED` bytes read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mdinfer.checkpoint.tensors import Block, Buffer, Stored
from mdinfer.errors import CheckpointError

_MAPPED = 128 << 20  # bytes; opening takes some 50 ms for 1000 tensors on a CPU, so 4 s for 10 GB
SUFFIXES = (".pt", ".pth", ".bin")
_NESTS = ("model", "state_dict", "model_state_dict", "weights")


def read_state(file: Path) -> tuple[Stored, ...]:
    """The tensors of a `.pt` file, by their place in it. Raises CheckpointError."""
    state = _open(file)
    tensors: list[Stored] = []
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{file.name}: entry {name!r} is a {type(value).__name__}, expected a tensor")
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise CheckpointError(
                f"tensor {name} in {file.name} is {value.layout} on {value.device}: expected dense, with data"
            )
        tensors.append(
            Stored(name=name, dtype=value.dtype, shape=tuple(value.shape), file=file, offset=value.data_ptr())
        )
    return tuple(sorted(tensors, key=lambda stored: stored.offset))


def _open(file: Path) -> Mapping[object, object]:
    """The state dict of a file, mapped: the values' bytes are read when they are touched."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): check the path and its rights") from error
    except Exception as error:  # the unpickler and the zip reader raise many kinds for a bad file
        raise CheckpointError(
            f"{file} is no readable state dict ({_first_line(error)}): download it again if it is truncated; "
            "one with more than tensors in it, or of PyTorch before 1.6, must be saved anew as a state dict"
        ) from error
    return _state_dict(loaded, file)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def _state_dict(loaded: object, file: Path) -> Mapping[object, object]:
    """The mapping with the tensors: the file's top level, or what it has under one of `_NESTS`."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}: expected a state dict, names -> tensors")
    for key in _NESTS:
        if isinstance(nested := loaded.get(key), Mapping):
            return nested
    return loaded


class TorchReader:
    """Reads blocks of a `.pt` file's tensors, one at a time. Raises CheckpointError if it cannot be opened."""

    def __init__(self, file: Path) -> None:
        self._file, self._one_by_one = file, threading.Lock()
        self._state: Mapping[object, object] | None = None
        self._touched = 0

    def read(self, stored: Stored, block: Block, buffer: Buffer) -> Tensor:
        with self._one_by_one:
            return self._read(stored, block, buffer)

    def _read(self, stored: Stored, block: Block, buffer: Buffer) -> Tensor:
        if self._touched > _MAPPED:
            self.close()
        if self._state is None:
            self._state = _open(self._file)
        tensor = self._state.get(stored.name)
        if not isinstance(tensor, Tensor) or (tensor.dtype, tuple(tensor.shape)) != (
            stored.dtype,
            stored.shape,
        ):
            raise CheckpointError(f"tensor {stored.name}: {self._file} was changed while it was read; load it again")
        source = tensor.detach()[block]
        values = buffer.hold(source.shape, stored.dtype)
        values.copy_(source)
        self._touched += values.nbytes
        return values

    def close(self) -> None:
        """Drop the mapping; the next read opens the file again."""
        self._state = None
        self._touched = 0
