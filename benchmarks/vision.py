"""How long the vision tower takes, by crop count: ms, and the least that the chip needs.

    python -m benchmarks.vision --random 20m --device cpu --crops 2 9
    python -m benchmarks.vision --random full --device cuda --whole 850x600 4000x3000

Crops are uint8 on the host, as the engine has them; their upload, the tower and the projection are timed, decoding and
resizing are not (see `benchmarks/images.py`). On a GPU passes are replayed as the engine replays them. `--whole`: how
long the upload of a whole picture takes and its resizing to crops on the device, with the engine's option
`resize="device"`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from benchmarks import subject
from benchmarks.report import median, table, write_json
from benchmarks.subject import Subject
from mdinfer.config import VisionConfig
from mdinfer.cuda_graphs import GraphPool, VisionGraphs
from mdinfer.image import image_tiling
from mdinfer.picture_cutter import PictureCutter
from mdinfer.uncut import MOST_SHRINK, UncutPicture
from mdinfer.upload import host_buffer, upload

CROPS = (2, 3, 5, 7, 9, 10, 13)


def tiling_of(crops: int) -> tuple[int, int]:
    """The squarest tiling of crops - 1 tiles."""
    tiles = crops - 1
    rows = max(n for n in range(1, tiles + 1) if tiles % n == 0 and n * n <= tiles)
    return rows, tiles // rows


@torch.inference_mode()
def measure_vision(
    on: Subject, counts: list[int], pictures: int, rounds: int, graphed: bool | None = None
) -> list[dict[str, Any]]:
    """A record for each crop count, of that many pictures in one pass; counts take turns, the first round warms up.

    graphed    on fixed buffers, which on a GPU are recorded; None: on a GPU
    """
    model = on.model
    side, draw = model.config.vision.crop_size, np.random.default_rng(0)
    graphs = None
    if graphed or (graphed is None and model.device.type == "cuda"):
        graphs = VisionGraphs(model.vision, max(counts) * pictures, model.device, GraphPool(model.device))
    times: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(rounds + 1):
        for count in counts:
            pixels = draw.integers(0, 256, (count * pictures, side, side, 3), dtype=np.uint8)
            on.synchronize()
            start = time.perf_counter()
            [crops] = upload([pixels], model.device)
            see = graphs.crop_features if graphs is not None else None
            model.vision(crops, [tiling_of(count)] * pictures, len(pixels), see)
            on.synchronize()
            if turn:
                times[count].append(1e3 * (time.perf_counter() - start))
    return [
        {
            "name": f"{count} crops",
            "crops": count,
            "pictures": pictures,
            "vision_ms": median(times[count]),
            "vision_best_ms": min(times[count]),
            "floor_ms": on.floors.vision(count * pictures, on.precision, pictures) if on.floors else None,
            "repeats": {"vision_ms": times[count]},
        }
        for count in counts
    ]


@torch.inference_mode()
def measure_cut(on: Subject, sizes: list[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    """A record for each (width, height) of whole pictures, of one; sizes take turns, the first round warms up."""
    config, device, draw = on.model.config.vision, on.model.device, np.random.default_rng(0)
    cutter, pictures = PictureCutter(config, device), list[UncutPicture]()
    for width, height in sizes:
        pixels = host_buffer(3 * width * height, device).view(height, width, 3)
        pixels.numpy()[:] = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pictures.append(UncutPicture(pixels=pixels, tiling=image_tiling(height, width, config), digest=b""))
    times: list[list[float]] = [[] for _ in pictures]
    for turn in range(rounds + 1):
        for picture, found in zip(pictures, times, strict=True):
            out = torch.empty(picture.count, config.crop_size, config.crop_size, 3, dtype=torch.uint8, device=device)
            on.synchronize()
            start = time.perf_counter()
            cutter.cut(picture, out)
            on.synchronize()
            if turn:
                found.append(1e3 * (time.perf_counter() - start))
    return [
        {
            "name": f"{picture.width}x{picture.height} to {picture.count} crops",
            "crops": picture.count,
            "cut_ms": median(found),
            "cut_best_ms": min(found),
            "repeats": {"cut_ms": found},
        }
        for picture, found in zip(pictures, times, strict=True)
    ]


def picture_size(text: str) -> tuple[int, int]:
    """ "850x600" -> (850, 600). Raises ValueError, also for what the device does not cut."""
    width, height = (int(number) for number in text.split("x"))
    if min(width, height) < 1 or max(width, height) > MOST_SHRINK * VisionConfig().crop_size:
        raise ValueError(text)
    return width, height


def crops_of(width: int, height: int, on: Subject) -> int:
    """Crops of a picture of this size."""
    rows, cols = image_tiling(height, width, on.model.config.vision)
    return 1 + rows * cols


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subject.add_options(parser, rounds=7)
    parser.add_argument("--crops", type=int, nargs="+", default=list(CROPS), metavar="N", help="of a picture")
    parser.add_argument("--pictures", type=int, default=1, help="that go through together")
    parser.add_argument(
        "--whole", type=picture_size, nargs="+", default=[], metavar="WxH", help="pictures to cut on the device"
    )
    options = parser.parse_args(argv)
    if min(options.crops) < 2 or options.pictures < 1:
        parser.error("a picture has at least 2 crops")
    on = subject.load("vision", options, parser)
    records = measure_vision(on, options.crops, options.pictures, options.rounds)
    result: dict[str, Any] = {**on.header, "results": records}
    print(
        table(
            ["crops", "ms", "best", "pictures/s", "floor ms", "of it"],
            [
                [
                    r["crops"] * r["pictures"],
                    r["vision_ms"],
                    r["vision_best_ms"],
                    1e3 * r["pictures"] / r["vision_ms"],
                    *floor_cells(r["floor_ms"], r["vision_ms"]),
                ]
                for r in records
            ],
        )
    )
    if options.whole:
        result["cut"] = measure_cut(on, options.whole, options.rounds)
        rows = [[record["name"], record["cut_ms"], record["cut_best_ms"]] for record in result["cut"]]
        print("\n" + table(["upload and resize of", "ms", "best"], rows))
    write_json(options.json, result)
    return result


def floor_cells(floor_ms: float | None, ms: float) -> list[str]:
    """A floor, and what share of the time it is."""
    return ["-", "-"] if floor_ms is None else [f"{floor_ms:.2f}", f"{floor_ms / ms:.0%}"]


if __name__ == "__main__":
    main()
