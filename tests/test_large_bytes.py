"""Parts put together, in an object of bytes or in a map."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdinfer import large_bytes
from mdinfer.large_bytes import SLICE, joined


@pytest.mark.parametrize("size", [0, 1, SLICE, SLICE + 1, 3 * SLICE + 5])
@pytest.mark.parametrize("parts", [1, 3])
def test_both_kinds(size: int, parts: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    step = max(1, size // parts)
    whole = joined(memoryview(data)[i : i + step] for i in range(0, size, step))
    assert isinstance(whole, bytes if size <= SLICE else mmap.mmap)
    assert len(whole) == size and whole[:] == data


@given(parts=st.lists(st.binary(max_size=40)))
def test_any_parts(parts: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_bytes, "SLICE", 16)
        assert joined(parts)[:] == b"".join(parts)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux shows a process's maps")
def test_many_are_few_maps_to_the_kernel() -> None:
    """It allows a process 65,530."""
    begin = maps()
    held = [joined([bytes(SLICE + 1)]) for _ in range(100)]
    assert maps() - begin < 50
    del held


def maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_no_memory() -> None:
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: int, **__: int) -> None:
            raise OSError(12, "Cannot allocate memory")

        patch.setattr("mdinfer.large_bytes.LargeBytes", refuse)
        with pytest.raises(MemoryError):
            joined([bytes(SLICE + 1)])
