"""A few lines of the results in JSON files: `python -m benchmarks.summary FILE ...`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    for path in sys.argv[1:] if argv is None else argv:
        result: Result = json.loads(Path(path).read_text())
        print(f"{Path(path).stem}: {'; '.join(_LINES[result['benchmark']](result))}")
    return 0


def _environment(result: Result) -> Iterator[str]:
    where, ceilings = result["environment"], result["ceilings"]
    yield ", ".join(
        f"{key} {where[key]}" for key in ("device", "driver", "torch", "triton", "commit") if where.get(key)
    )
    yield f"copy {ceilings['bytes_per_s'] / 1e9:.0f} GB/s, product {ceilings['flops_per_s'] / 1e12:.0f} TFLOP/s"


def _check(result: Result) -> Iterator[str]:
    faults = [record["case"] for record in result["results"] if record["fault"]]
    yield f"{len(result['results']) - len(faults)} of {len(result['results'])} cases within their bounds"
    if faults:
        yield f"not {', '.join(faults)}"


def _speed(result: Result) -> Iterator[str]:
    records = result["results"]
    bars = [record for record in records if record["reached"] is not None]
    yield f"{sum(record['reached'] for record in bars)} of {len(bars)} bars reached"
    missed = [f"{r['case']} {r['share']:.0%} < {r['bar']:.0%} of {r['of']}" for r in bars if not r["reached"]]
    slower = [r["case"] for r in records if r["ms"] and any(ms < r["ms"] for ms in r["rivals"].values())]
    for what, names in (("missed", missed), ("a library is faster at", slower), ("failed", _failed(records))):
        if names:
            yield f"{what} {', '.join(names)}"


def _golden(result: Result) -> Iterator[str]:
    answers = Counter(record["dtype"] for record in result["results"])
    equal = Counter(record["dtype"] for record in result["results"] if not record["wrong"])
    for dtype, count in answers.items():
        yield f"{dtype} {equal[dtype]} of {count} equal"
    if faults := _failed(result["results"]):
        yield f"failed {', '.join(faults)}"


def _decode(result: Result) -> Iterator[str]:
    yield f"{result['model']}, {result['precision']}"
    if vision := result.get("vision"):
        yield f"vision {vision['vision_ms']:.1f} ms at {vision['crops']} crops"
    for record in result["results"]:
        yield f"{record['name']}: prefill {record['prefill_ms']:.1f} ms, decode {record['decode_ms']:.2f} ms a step"


def _failed(records: list[Result]) -> list[str]:
    return [record["case"] for record in records if record["fault"]]


_LINES = {"environment": _environment, "check": _check, "speed": _speed, "golden": _golden, "decode": _decode}


if __name__ == "__main__":
    sys.exit(main())
