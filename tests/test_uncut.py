"""Which pictures are left to the device: those that it may hold, as long as there is room, which comes back."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mdinfer import uncut
from mdinfer.config import VisionConfig
from mdinfer.image import OpenedPicture, open_picture
from mdinfer.uncut import MOST_SHRINK, UncutRoom

CPU = torch.device("cpu")


def opened(height: int, width: int) -> OpenedPicture:
    picture = np.arange(3 * height * width, dtype=np.uint8).reshape(height, width, 3)
    return open_picture(picture, VisionConfig(), exif=False, max_pixels=1 << 30)


def test_room_is_taken_while_the_picture_exists() -> None:
    room = UncutRoom(CPU, 3 * 100 * 100)
    one = room.take(opened(60, 100))
    assert one is not None and room.left == 3 * 40 * 100
    assert torch.equal(one.pixels, torch.arange(18_000).to(torch.uint8).view(60, 100, 3))
    assert room.take(opened(41, 100)) is None
    other = room.take(opened(40, 100))
    assert other is not None and room.left == 0
    del one
    assert room.left == 3 * 60 * 100
    assert room.take(opened(41, 100)) is not None


def test_large_and_long_pictures_are_cut_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    room = UncutRoom(CPU)
    longest = MOST_SHRINK * 378
    assert room.take(opened(1, longest)) is not None
    assert room.take(opened(1, longest + 1)) is None and room.take(opened(longest + 1, 1)) is None
    monkeypatch.setattr(uncut, "PICTURE_BYTES", 3 * 50 * 50)
    assert room.take(opened(50, 50)) is not None and room.take(opened(50, 51)) is None


def test_a_picture_of_4096_by_4096_is_left_to_the_device() -> None:
    assert uncut.PICTURE_BYTES >= 3 * 4096 * 4096 and MOST_SHRINK * 378 >= 4096


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_without_memory_that_the_device_reads_the_cpu_cuts(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(nbytes: int, device: torch.device) -> torch.Tensor:
        raise error

    monkeypatch.setattr(uncut, "host_buffer", refusing)
    room = UncutRoom(CPU, 1 << 20)
    assert room.take(opened(10, 10)) is None and room.left == 1 << 20


def test_no_fault_keeps_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(source: int, target: int) -> None:
        raise ValueError

    monkeypatch.setattr(uncut, "resize_arrays", failing)
    room = UncutRoom(CPU, 1 << 20)
    with pytest.raises(ValueError):  # noqa: PT011  # any would do
        room.take(opened(10, 10))
    gc.collect()
    assert room.left == 1 << 20


def test_many_threads_share_one_room() -> None:
    room, picture = UncutRoom(CPU, 3 * 30 * 30 * 5), opened(30, 30)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            taken = list(pool.map(lambda _: room.take(picture), range(12)))
            assert sum(one is not None for one in taken) == 5 and room.left == 0
            taken.clear()
            assert room.left == 3 * 30 * 30 * 5
