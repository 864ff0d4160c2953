"""What the model is to reach on an H100, beside the chip's floor, what Kestrel is published to reach, and what is
measured: in the files that `benchmarks/gpu.sh` writes, which may not be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.chips import CHIPS
from benchmarks.costs import Precision
from benchmarks.report import ResultError, read_result
from benchmarks.roofline import QUESTIONS_PER_PICTURE, Floors
from benchmarks.sizes import SIZES
from mdinfer.loading import parameter_count

Result = dict[str, Any]

CONTEXT = 800
CROPS = 9  # of a picture of 850 x 600
NOT_MEASURED = "not measured"
_BF16, _FP8 = "bfloat16, cache bf16", "bfloat16, experts float8_e4m3fn, cache fp8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`figure` of `record` in a result file, which counts if the file says `settings` of itself."""

    what: str
    goal: float
    floor: float
    kestrel: str
    file: str
    settings: dict[str, Any]
    record: str
    figure: str

    def measured(self, path: Path, result: Result) -> float | None:
        """None where the file has no such record. Raises ResultError where it is of something else."""
        for key, value in {"parameters": parameter_count(SIZES["full"]), **self.settings}.items():
            if result.get(key) != value:
                raise ResultError(f"{path} says {key} is {result.get(key)!r}, not {value!r}: run benchmarks/gpu.sh")
        records = result["charts" if self.figure == "requests_per_s" else "results"]
        return next((record[self.figure] for record in records if record["name"] == self.record), None)


def goals() -> list[Goal]:
    floors, fp8 = Floors(SIZES["full"], CHIPS["H100"].rates), Precision(experts="fp8", kv="fp8")
    return [
        _decoding(floors, 1, 1.5, Precision()),
        _decoding(floors, 1, 1.1, fp8),
        _decoding(floors, 64, 7, fp8),
        Goal(
            what=f"vision tower, {CROPS} crops, bf16: ms",
            goal=10.5,
            floor=floors.vision(CROPS, Precision()),
            kestrel=f"{peers.KESTREL_VISION_MS[CROPS]}",
            file="gpu-vision",
            settings={"precision": "bfloat16"},
            record=f"{CROPS} crops",
            figure="vision_ms",
        ),
        *(
            _requests(floors, answers, clients, goal, fp8)
            for answers, clients, goal in ((3, 1, 60), (3, 64, 95), (30, 1, 24), (30, 64, 75))
        ),
    ]


def _decoding(floors: Floors, batch: int, goal: float, precision: Precision) -> Goal:
    low, high = peers.implied_decode_ms(batch)
    implied = f"{low:.2f}" if low == high else f"{low:.0f} to {high:.0f}"
    fp8 = precision.experts == "fp8"
    return Goal(
        what=f"decoding, batch {batch}, {'experts and cache in fp8' if fp8 else 'bf16'}: ms a step",
        goal=goal,
        floor=floors.decode(batch, CONTEXT, precision),
        kestrel=implied if fp8 else "-",
        file=f"gpu-full-{precision.experts}",
        settings={"precision": _FP8 if fp8 else _BF16, "prompt": CONTEXT},
        record=f"mdinfer, batch {batch}",
        figure="decode_ms",
    )


def _requests(floors: Floors, answers: int, clients: int, goal: float, precision: Precision) -> Goal:
    known = peers.published("H100")
    assert known is not None
    ms = floors.request(clients, answers, precision, seen=1 - 1 / QUESTIONS_PER_PICTURE, crops=CROPS)
    return Goal(
        what=f"answers of {answers} tokens, {clients} client{'s' * (clients > 1)}: requests/s",
        goal=goal,
        floor=1e3 / ms,
        kestrel=f"{known[answers, clients][0]}",
        file="gpu-throughput",
        settings={"precision": _FP8, "caches": True},
        record=f"{answers} tokens, {clients} clients, clean",
        figure="requests_per_s",
    )


def rows(folder: Path) -> tuple[list[list[str]], list[Result]]:
    """Cells of goal, floor, Kestrel and measured; and the files that there are. Raises ResultError."""
    cells, files = [], dict[str, Result]()
    for goal in goals():
        path, cell = folder / f"{goal.file}.json", NOT_MEASURED
        if path.exists():
            files[goal.file] = result = read_result(path)
            cell = _measured(goal, path, result)
        cells.append([goal.what, f"{goal.goal:g}", _short(goal.floor), goal.kestrel, cell])
    return cells, list(files.values())


def _measured(goal: Goal, path: Path, result: Result) -> str:
    found, device = goal.measured(path, result), result["environment"]["device"]
    if found is None:
        return NOT_MEASURED
    return _short(found) + ("" if peers.published(device) else f", on {device}")


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
