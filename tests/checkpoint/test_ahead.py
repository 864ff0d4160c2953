"""Blocks read ahead: in order, each whole until the next is asked for, errors in their turn, nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mdinfer.checkpoint import find_checkpoint, load
from mdinfer.checkpoint.ahead import Job, read_ahead
from mdinfer.checkpoint.tensors import Block, Buffer, Stored
from mdinfer.errors import CheckpointError
from tests.checkpoint.models import FP8, INT8, empty_targets, tiny_config
from tests.checkpoint.writers import WRITERS, random_canonical_weights

STORED = Stored(name="x", dtype=torch.int64, shape=(100,), file=Path("x"), offset=0)


class Slow:
    """Reads the block's number, later blocks sooner than earlier ones; number 60 cannot be read."""

    def __init__(self, bad: int = -1) -> None:
        self.bad, self.begun, self.threads = bad, 0, set[int]()

    def read(self, stored: Stored, block: Block, buffer: Buffer) -> Tensor:
        [rows] = block
        assert isinstance(rows, slice)
        self.begun += 1
        self.threads.add(threading.get_ident())
        time.sleep(0.002 * (rows.start % 3 == 0))
        if rows.start == self.bad:
            raise CheckpointError("it is bad")
        return buffer.hold((4,), torch.int64).fill_(rows.start)

    def close(self) -> None: ...


def jobs(reader: Slow, count: int) -> Iterator[Job[int]]:
    return ((i, reader, STORED, (slice(i, i + 1),)) for i in range(count))


@pytest.mark.parametrize("count", [0, 1, 3, 50])
@pytest.mark.parametrize("buffers", [1, 2, 5])
def test_blocks_come_in_order_and_last(buffers: int, count: int) -> None:
    reader, found = Slow(), []
    for of, block, values in read_ahead(jobs(reader, count), [Buffer() for _ in range(buffers)], threads=3):
        time.sleep(0.001)  # others are read meanwhile, into other buffers
        assert block == (slice(of, of + 1),) and values.tolist() == [of] * 4
        found.append(of)
    assert found == list(range(count))
    if count == 50:
        assert (threading.get_ident() in reader.threads) == (buffers == 1)


@pytest.mark.parametrize("buffers", [1, 4])
def test_an_error_comes_in_its_turn(buffers: int) -> None:
    reading = read_ahead(jobs(Slow(bad=7), 50), [Buffer() for _ in range(buffers)], threads=3)
    for i in range(7):
        assert next(reading)[0] == i
    with pytest.raises(CheckpointError, match="it is bad"):
        next(reading)


def test_one_that_is_closed_reads_no_further() -> None:
    reader = Slow()
    with closing(read_ahead(jobs(reader, 50), [Buffer() for _ in range(4)], threads=2)) as reading:
        next(reading)
    begun = reader.begun
    time.sleep(0.02)
    assert reader.begun == begun <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mdinfer-read")]


@pytest.mark.parametrize("experts", [None, FP8, INT8], ids=["bf16", "fp8", "int8"])
@pytest.mark.parametrize("layout", WRITERS)
def test_a_checkpoint_is_the_same(
    layout: str, experts: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small blocks, read ahead as for a GPU."""
    config = tiny_config()
    WRITERS[layout](tmp_path, config, random_canonical_weights(config, fp8=layout != "published"))
    plain, ahead = empty_targets(config, experts=experts), empty_targets(config, experts=experts)
    find_checkpoint(tmp_path).load_into(plain, progress=False)
    monkeypatch.setattr(load, "_CPU_BLOCK", 300)
    monkeypatch.setattr(load, "_buffers", lambda fills: [Buffer(size=1 << 16) for _ in range(5)])
    find_checkpoint(tmp_path).load_into(ahead, progress=False)
    for name, values in plain.items():
        assert torch.equal(values.float(), ahead[name].float()), name
