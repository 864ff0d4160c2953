"""What a call would start on a GPU, written down without one: kernels, library operations and copies, in order.

Tensors lie on "meta", which have shapes and no values. An operation of torch counts as one start where it makes new
memory and fills it, or writes into what it was given; views and unset memory cost nothing. Libraries may start more
than one kernel for an operation, so these counts are the least there can be.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mdinfer.kernels import dispatch
from mdinfer.kernels._triton.launch import Launch, Target, recorded

H100 = Target(capability=90, processors=132, shared=227 * 1024)

# Operations that take rows out of a table, and read no more of it than they give.
_PICKS = ("index_select", "index.Tensor", "embedding")
_BLOCK = 512  # bytes that torch's allocator on CUDA gives out at least
_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass(frozen=True, slots=True)
class Start:
    """kind is "kernel" (Triton), "torch", or "upload" (from the host).

    tensors   what a kernel was given; of a torch operation what it reads
    results   what a torch operation writes
    """

    kind: str
    name: str
    tensors: tuple[torch.Tensor, ...]
    results: tuple[torch.Tensor, ...] = ()

    @property
    def picks(self) -> bool:
        return self.kind == "torch" and self.name.startswith(_PICKS)


@dataclass
class Trace:
    """starts in order, of which kernels turn up once `drain` is called."""

    launches: list[Launch]
    starts: list[Start] = field(default_factory=list)
    _drained: int = 0

    def drain(self) -> None:
        """Give the kernels launched since their place in the order."""
        for launch in self.launches[self._drained :]:
            tensors = tuple(t for t in launch.args if isinstance(t, torch.Tensor))
            self.starts.append(Start("kernel", launch.name, tensors))
        self._drained = len(self.launches)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types it not
    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._trace.drain()
        kwargs = kwargs or {}
        given, out = _tensors((args, kwargs)), func(*args, **kwargs)
        results = _tensors(out)
        if any(x.is_meta for x in (*given, *results)):
            self._note(func, given, results)
        return out

    def _note(self, func: Any, given: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        name, old = str(func).removeprefix("aten."), {storage_of(x) for x in given}
        fresh = [x for x in results if storage_of(x) not in old and name.partition(".")[0] not in _EMPTY]
        written = fresh or (results if _writes(func) else [])
        if written:
            kind = "upload" if any(x.device.type == "cpu" and x.dim() for x in given) else "torch"
            self._trace.starts.append(Start(kind, name, tuple(given), tuple(written)))


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types it not
    """Bytes of memory on meta that is in use, and were at most."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._launches, self._used, self.peak = launches, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._launches.clear()  # they hold tensors
        given = {storage_of(x) for x in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            if x.is_meta and storage_of(x) not in given | self._known:
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        place, size = int(storage._cdata), -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._known.add(place)
        self._used += size
        self.peak = max(self.peak, self._used)
        weakref.finalize(storage, self._free, place, size)

    def _free(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._used -= size


def storage_of(x: torch.Tensor) -> int:
    """The same for all views of the same memory, as long as it lives."""
    return int(x.untyped_storage()._cdata)


@contextmanager
def traced(target: Target = H100) -> Iterator[Trace]:
    """Write down what is started within, as a GPU would have it; nothing is carried out."""
    with _pretending(target) as launches:
        trace = Trace(launches)
        with _Operations(trace):
            yield trace
        trace.drain()


@contextmanager
def allocating(target: Target = H100) -> Iterator[Callable[[], int]]:
    """Count the memory that is taken within. Gives a function that says how many bytes were in use at most."""
    with _pretending(target) as launches, _Allocations(launches) as allocations:
        yield lambda: allocations.peak


@contextmanager
def _pretending(target: Target) -> Iterator[list[Launch]]:
    with (
        mock.patch.object(dispatch, "compiled", _everywhere),
        recorded(run=False, target=target) as launches,
    ):
        yield launches


def _everywhere(x: torch.Tensor) -> bool:
    """In place of a mock's return value: a mock keeps what it was called with, and so the memory."""
    return True


def _tensors(values: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def _writes(func: Any) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
