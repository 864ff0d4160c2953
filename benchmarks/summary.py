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
    bars = [record for record in records if record["bar"] is not None]
    yield f"{sum(record['reached'] is True for record in bars)} of {len(bars)} bars reached"
    missed = [f"{r['case']} {r['share']:.0%} < {r['bar']:.0%} of {r['of']}" for r in bars if r["reached"] is False]
    untold = [r["case"] for r in bars if r["reached"] is None]
    slower = [r["case"] for r in records if r["ms"] and any(ms < r["ms"] for ms in r["rivals"].values())]
    for what, names in (
        ("missed", missed),
        ("open", untold),
        ("a library is faster at", slower),
        ("failed", _failed(records)),
    ):
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
    ways = (name.replace("_", " ") for name in ("dependent_launch", "two_streams") if result.get(name))
    yield ", ".join((result["model"], result["precision"], *ways))
    if vision := result.get("vision"):
        yield f"vision {vision['vision_ms']:.1f} ms at {vision['crops']} crops"
    for record in result["results"]:
        share = _of_floor(record, record["decode_ms"])
        prefill = f"{record['name']}: prefill {record['prefill_ms']:.1f} ms"
        yield f"{prefill}, decode {record['decode_ms']:.2f} ms a step{share}"


def _vision(result: Result) -> Iterator[str]:
    yield f"{result['model']}, {result['precision']}"
    for record in result["results"]:
        yield f"{record['name']} {record['vision_ms']:.2f} ms{_of_floor(record, record['vision_ms'])}"
    for record in result.get("cut", ()):
        yield f"{record['name']} {record['cut_ms']:.2f} ms"


def _prefill(result: Result) -> Iterator[str]:
    yield f"{result['model']}, {result['precision']}"
    for record in result["results"]:
        yield f"{record['name']}: {record['prefill_ms']:.2f} ms{_of_floor(record, record['prefill_ms'])}"


def _of_floor(record: Result, ms: float) -> str:
    floor = record.get("floor_ms")
    return f" ({floor / ms:.0%} of the floor's speed)" if floor else ""


def _throughput(result: Result) -> Iterator[str]:
    yield f"{result['model']}, {result['precision']}" if "precision" in result else str(result["model"])
    if "ratio" in result:
        yield f"mixed requests together {result['ratio']:.2f} times as many as one at a time"
    for record in result.get("charts", ()):
        times = f"p50 {record['p50_ms']:.0f}, p90 {record['p90_ms']:.0f} ms"
        yield f"{record['name']}: {record['requests_per_s']:.1f} requests/s, {times}"


def _launches(result: Result) -> Iterator[str]:
    yield f"experts {result['experts']}, linears {result.get('linears', 'bf16')}, cache {result['kv']}"
    for record in result["results"]:
        starts = f"{record['name']}: {record['starts']} starts, {'/'.join(map(str, record['layers']))} a layer"
        yield f"{starts}, bytes {record['of_floor']:.3f} of the floor's"
    yield "host " + ", ".join(f"{host['all']:.0f} us at batch {host['batch']}" for host in result["host"])


def _roofline(result: Result) -> Iterator[str]:
    rates = result["rates"]
    yield f"{rates['bandwidth'] / 1e12:g} TB/s, {rates['bf16'] / 1e12:g} TFLOP/s ({rates['source']})"
    context = result["decode"][0]["context"]
    for record in (record for record in result["decode"] if record["context"] == context):
        floors = ", ".join(f"{ms:.2f}" for ms in record["ms"].values())
        kept = "/".join((record["experts"], record.get("linears", "bf16"), record["kv"]))
        yield f"decode {kept} after {context}: {floors} ms"


def _memory(result: Result) -> Iterator[str]:
    names = [name for name in result["cards"][0]["holds"] if name in ("bf16 / bf16", "fp8 / fp8", "int4 / fp8")]
    yield f"requests of {result['tokens']} tokens in {', '.join(names)}"
    for card in result["cards"]:
        yield f"{card['gib']:g} GiB " + ", ".join(str(card["holds"][name]["requests"]) for name in names)


def _images(result: Result) -> Iterator[str]:
    for record in result["results"]:
        yield f"{record['name']}: {record['images_per_s']:.1f} a second, {record['images_per_s_per_core']:.1f} a core"


def _failed(records: list[Result]) -> list[str]:
    return [record["case"] for record in records if record["fault"]]


_LINES = {
    "environment": _environment,
    "check": _check,
    "speed": _speed,
    "golden": _golden,
    "decode": _decode,
    "vision": _vision,
    "prefill": _prefill,
    "throughput": _throughput,
    "launches": _launches,
    "roofline": _roofline,
    "memory": _memory,
    "images": _images,
}


if __name__ == "__main__":
    sys.exit(main())
