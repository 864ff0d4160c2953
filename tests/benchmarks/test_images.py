"""The benchmark of pictures on the CPU reads pictures, on as many threads as it says."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks import images
from mdinfer.errors import ImageError


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "images.json"
    few = ["--kind", "photo-jpeg-850x600", "--kind", "chart-png-850x600", "--seconds", "0.05", "--rounds", "2"]
    images.main([*few, "--threads", "1", "2", "--json", str(path)])
    records = json.loads(path.read_text())["results"]
    assert {(r["kind"], r["threads"], r["resize"]) for r in records} == {
        (kind, n, way)
        for kind in ("photo-jpeg-850x600", "chart-png-850x600")
        for n in (1, 2)
        for way in ("cpu", "device")
    }
    assert len({r["name"] for r in records}) == len(records) == 8
    for record in records:
        assert record["decode_ms"] > 0 and record["resize_ms"] > record["leave_ms"] > 0
        assert (
            record["images_per_s"] in record["repeats"]["images_per_s"] and len(record["repeats"]["images_per_s"]) == 2
        )
        assert record["images_per_s_per_core"] in record["repeats"]["images_per_s_per_core"]
    assert "60 a second on 16 cores takes 3.75" in capsys.readouterr().out


def test_every_picture_is_read_on_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    both = threading.Barrier(2, timeout=20)

    def read(*_: object, **__: object) -> None:
        if threading.current_thread().name not in seen:
            seen.add(threading.current_thread().name)
            both.wait()

    monkeypatch.setattr(images, "prepare_image", read)
    assert images.rate([b"a", b"b"], 2, 0.01).per_s > 0
    assert len(seen) == 2


def test_what_is_left_to_the_device_is_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise AssertionError("resized")

    monkeypatch.setattr("mdinfer.image._cut", refusing)
    file = images._file(images.photo, "PNG", 1, (85, 60))
    found = images.rate([file], 1, 0.01, "device")
    assert 0 < found.per_s <= 1.05 * found.per_cpu_s  # no thread has more processor time than there is time
    with pytest.raises(AssertionError, match="resized"):
        images.rate([file], 1, 0.01, "cpu")


def test_a_picture_that_cannot_be_read_is_a_fault() -> None:
    for way in images.RESIZE:
        with pytest.raises(ImageError):
            images.rate([b"nothing"], 2, 0.01, way)


def test_photos_are_the_same_for_the_same_seed_and_not_smooth() -> None:
    one, again, other = (np.asarray(images.photo(seed, (85, 60)), dtype=int) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    assert np.abs(np.diff(one, axis=1)).mean() > 3


def test_thread_counts() -> None:
    assert [images.doubling(n) for n in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]
