"""Pictures a second that the CPU decodes and cuts up for the vision tower, in all and per core.

    python -m benchmarks.images
    python -m benchmarks.images --threads 1 16 --kind photo-jpeg-850x600 --resize cpu --json out.json

As the engine does it, on so many threads: decode to RGB and hash, then resize (Lanczos) to crops, or, with the engine's
option `resize="device"`, lay the pixels out for the device, whose own time `benchmarks/vision.py --whole` takes. The
parts are timed on one thread, too. Files are decoded in full: JPEG's scaled decoding (Pillow's `draft`) gives other
pixels, and so other answers than the reference's. Photos are smooth patches with noise, which files keep as badly as
real ones; charts compress well. A figure per core is of a second of the threads' own processor time, which on a
machine that does nothing else is that of all threads divided by the threads.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.load_mix import chart
from benchmarks.report import environment, median, table, write_json
from mdinfer.config import VisionConfig
from mdinfer.image import OpenedPicture, open_picture, prepare_image
from mdinfer.uncut import UncutRoom

GOAL = 60 / 16  # pictures of 850 x 600 a second and core: what keeps up with the vision tower of a large GPU
_CONFIG = VisionConfig()
_LIMIT = 100_000_000
_ROOM = UncutRoom(torch.device("cpu"), 1 << 40)


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Colours that change slowly, with noise as of a sensor."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    noise = draw.integers(-6, 7, smooth.shape, dtype=np.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def _file(draw: Callable[[int, tuple[int, int]], Image.Image], kind: str, seed: int, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    draw(seed, size).save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


KINDS = {
    "chart-png-850x600": (chart, "PNG", (850, 600)),
    "photo-png-850x600": (photo, "PNG", (850, 600)),
    "photo-jpeg-850x600": (photo, "JPEG", (850, 600)),
    "screen-png-1920x1080": (chart, "PNG", (1920, 1080)),
    "photo-jpeg-1920x1080": (photo, "JPEG", (1920, 1080)),
    "photo-jpeg-4000x3000": (photo, "JPEG", (4000, 3000)),
}
RESIZE = ("cpu", "device")


class Rate(NamedTuple):
    """Pictures a second, and a second of the threads' own processor time, of which a busy machine takes none."""

    per_s: float
    per_cpu_s: float


def parts(file: bytes, count: int) -> dict[str, float]:
    """Median milliseconds of decoding with hashing, of resizing with cutting, and of leaving that to the device; of
    this thread's own processor time.
    """
    times: dict[str, list[float]] = {"decode_ms": [], "resize_ms": [], "leave_ms": []}
    for _ in range(count):
        start = time.thread_time()
        opened = open_picture(file, _CONFIG, exif=True, max_pixels=_LIMIT)
        decoded = time.thread_time()
        opened.crops()
        resized = time.thread_time()
        _leave(opened)
        times["leave_ms"].append(1e3 * (time.thread_time() - resized))
        times["decode_ms"].append(1e3 * (decoded - start))
        times["resize_ms"].append(1e3 * (resized - decoded))
    return {name: median(values) for name, values in times.items()}


def read(file: bytes, resize: str) -> None:
    """As far as the CPU comes with it."""
    if resize == "cpu":
        prepare_image(file, _CONFIG, exif=True, max_pixels=_LIMIT)
    else:
        _leave(open_picture(file, _CONFIG, exif=True, max_pixels=_LIMIT))


def _leave(opened: OpenedPicture) -> None:
    uncut = _ROOM.take(opened)
    assert uncut is not None


def rate(files: list[bytes], threads: int, seconds: float, resize: str = "cpu") -> Rate:
    """Of all threads, each of which reads two pictures at least. The first fault is raised."""

    def work(first: int) -> tuple[int, float, float]:
        start, used, done = time.perf_counter(), time.thread_time(), 0
        while done < 2 or time.perf_counter() - start < seconds:
            read(files[(first + done) % len(files)], resize)
            done += 1
        return done, time.perf_counter() - start, time.thread_time() - used

    with ThreadPoolExecutor(threads) as pool:
        counts, wall, used = zip(*pool.map(work, range(threads)), strict=True)
    return Rate(sum(n / s for n, s in zip(counts, wall, strict=True)), sum(counts) / sum(used))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Kinds, thread counts and ways take turns, round by round."""
    files = {kind: [_file(draw, form, n, size) for n in range(4)] for kind, (draw, form, size) in _chosen(options)}
    rates: dict[tuple[str, int, str], list[Rate]] = {}
    for _ in range(options.rounds):
        for kind, pictures in files.items():
            for threads, way in itertools.product(options.threads, options.resize):
                rates.setdefault((kind, threads, way), []).append(rate(pictures, threads, options.seconds, way))
    alone = {kind: parts(pictures[0], 5) for kind, pictures in files.items()}
    return [
        {
            "name": f"{kind}, {threads} threads" + ", resized on the device" * (way == "device"),
            "kind": kind,
            "threads": threads,
            "resize": way,
            "kib": len(files[kind][0]) / 1024,
            **alone[kind],
            "images_per_s": median([one.per_s for one in found]),
            "images_per_s_per_core": median([one.per_cpu_s for one in found]),
            "repeats": {
                "images_per_s": [one.per_s for one in found],
                "images_per_s_per_core": [one.per_cpu_s for one in found],
            },
        }
        for (kind, threads, way), found in rates.items()
    ]


def _chosen(options: argparse.Namespace) -> list[tuple[str, Any]]:
    return [(kind, made) for kind, made in KINDS.items() if not options.kind or kind in options.kind]


def doubling(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({most, *(1 << n for n in range(most.bit_length()) if 1 << n <= most)})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=doubling(min(16, cores)), metavar="N")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these pictures; repeatable")
    parser.add_argument("--resize", nargs="+", choices=RESIZE, default=list(RESIZE), help="where")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    options = parser.parse_args(argv)
    where = environment(torch.device("cpu")) | {"cores": cores, "pillow": version("pillow")}
    print(", ".join(f"{key} {value}" for key, value in where.items()) + "\n")
    records = measure(options)
    columns = ["picture", "KiB", "decode ms", "resize ms", "leave ms", "threads", "resize", "images/s", "per core"]
    keys = (
        *("kind", "kib", "decode_ms", "resize_ms", "leave_ms", "threads", "resize"),
        *("images_per_s", "images_per_s_per_core"),
    )
    print(table(columns, [[record[key] for key in keys] for record in records]))
    for way in options.resize:
        needed = [r for r in records if "850x600" in r["kind"] and r["resize"] == way]
        if not needed:
            continue
        least = min(needed, key=lambda r: float(r["images_per_s_per_core"]))
        print(
            f"850 x 600, resized on the {way}: at least {least['images_per_s_per_core']:.1f} a second and core "
            f"({least['kind']}, {least['threads']} threads); 60 a second on 16 cores takes {GOAL}"
        )
    result = {"benchmark": "images", "environment": where, "results": records}
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
