"""Blocks read by threads of their own while those before them are converted and copied to a device.

One thread copies out of the operating system's cache, or waits for a disk, at a part of the rate at which a GPU takes
blocks. The order stays that of the jobs, and memory that of the buffers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from mdinfer.checkpoint.tensors import Block, Buffer, Reader, Stored

Of = TypeVar("Of")
Job = tuple[Of, Reader, Stored, Block]
"""What the block is for, and where it is read from."""


def read_ahead(
    jobs: Iterable[Job[Of]], buffers: Sequence[Buffer], *, threads: int
) -> Generator[tuple[Of, Block, Tensor]]:
    """Each job's block, valid until the next is asked for.

    With more than one buffer, all but the one that is given out are read into meanwhile, by so many threads; with one,
    the caller's thread reads. A reader's CheckpointError is raised in its turn. To be closed if it is not used up.
    """
    if len(buffers) == 1:
        for of, reader, stored, block in jobs:
            yield of, block, reader.read(stored, block, buffers[0])
        return
    pending: deque[tuple[Of, Block, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="mdinfer-read") as pool:
        try:
            for number, (of, reader, stored, block) in enumerate(jobs):
                if len(pending) == len(buffers):
                    yield _first(pending)  # once the caller is done with it, its buffer is the next one's
                buffer = buffers[number % len(buffers)]
                pending.append((of, block, pool.submit(reader.read, stored, block, buffer)))
            while pending:
                yield _first(pending)
        finally:
            for *_, future in pending:
                future.cancel()


def _first(pending: deque[tuple[Of, Block, Future[Tensor]]]) -> tuple[Of, Block, Tensor]:
    of, block, future = pending.popleft()
    return of, block, future.result()
