"""How fast every kernel is at the model's real shapes: `python -m benchmarks.kernels.speed`.

Beside each time stand the share it reaches of the chip's own measured ceilings, the time of a plain copy of as many
bytes (which says what a start costs at small sizes), and the library operations that do the same work. Exits with 1
where a kernel fails to run; bars that are missed are listed, and those open because what they compare with failed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.kernels.apart import Record, each
from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.command import chosen, named, on_gpu, parser
from benchmarks.kernels.measure import Timer, calls_of, ceilings, rotated, timer_for
from benchmarks.report import environment, median, table, write_json

_CEILINGS, _KERNEL, _COPY = "the chip's ceilings", "kernel", "copy"


def main(argv: list[str] | None = None) -> int:
    arguments = parser("speed", __doc__.partition("\n")[0])
    arguments.add_argument("--no-rivals", action="store_true", help="time the kernels alone")
    options = arguments.parse_args(argv)
    cases = chosen(options)
    pairs = [(case.name, _KERNEL) for case in cases]
    if not options.no_rivals:
        pairs += [(case.name, who) for case in cases for who in case.rivals]
        pairs += [(case.name, _COPY) for case in cases if case.bytes]
    items = [(name, who, options.device) for name, who in [(_CEILINGS, ""), *pairs]]
    found = each(_measure, items, apart=on_gpu(options.device), budget_s=options.budget)
    ceiling = next(found)
    times = dict(zip(pairs, found, strict=True))
    records = [judged(case, ceiling, {who: times[n, who] for n, who in pairs if n == case.name}) for case in cases]
    print(_table(records))
    faults = [f"{name}: {why}" for name, why in _faults(ceiling, records)]
    for line in faults:
        print(f"FAULT {line}")
    for record in records:
        for who, why in record["failed_rivals"].items():
            print(f"no rival {who} for {record['case']}: {why}")
    bars = [record for record in records if record["bar"] is not None]
    for record in bars:
        if record["share"] is None:
            print(f"OPEN {record['case']}: the bar is {record['bar']:.0%} of {record['of']}")
        elif not record["reached"]:
            print(f"MISSED {record['case']}: {record['share']:.0%} of {record['of']}, the bar is {record['bar']:.0%}")
    reached = sum(record["reached"] is True for record in bars)
    print(f"{len(records)} cases, {reached} of {len(bars)} bars reached, {len(faults)} faults")
    where = environment(torch.device(options.device))
    write_json(options.json, {"benchmark": "speed", "environment": where, "ceilings": ceiling, "results": records})
    return 1 if faults or not records else 0


def _measure(name: str, who: str, device: str) -> Record:
    on = torch.device(device)
    if on.type == "cuda":
        torch.cuda.empty_cache()
    return ceilings(on) if name == _CEILINGS else time_of(named(name), who, on, timer_for(on))


@torch.inference_mode()
def time_of(case: Case, who: str, device: torch.device, timer: Timer) -> Record:
    """ms of one call of the kernel, the rival named or the copy, its repeats, and how many inputs took turns."""
    torch.manual_seed(0)  # rivals get what the kernel got
    if who == _COPY:
        case = _copy_of(case.bytes)
    inputs = rotated(case, device)
    times = timer(calls_of(case.rivals.get(who, case.run), inputs))
    return {"ms": median(times), "repeats": times, "turns": len(inputs)}


def _copy_of(count: int) -> Case:
    """Half of the bytes read, half written."""

    def inputs(device: torch.device) -> Inputs:
        source = torch.randint(0, 256, (max(1, count // 2),), dtype=torch.uint8, device=device)
        return torch.empty_like(source), source

    return Case(
        op="copy", shape="", inputs=inputs, run=torch.Tensor.copy_, twin=torch.clone, bound=0, why="", bytes=count
    )


def judged(case: Case, ceiling: Record, times: dict[str, Record]) -> Record:
    """One line of the report: rates and shares of the ceilings, rivals, and the bar."""
    ms = {who: time["ms"] for who, time in times.items() if time.get("ms")}
    rivals = {who: ms[who] for who in case.rivals if who in ms}
    record: Record = {
        "case": case.name,
        "fault": times[_KERNEL].get("fault", ""),
        "ms": ms.get(_KERNEL),
        "copy_ms": ms.get(_COPY),
        "repeats": {"ms": times[_KERNEL].get("repeats", [])},
        "turns": times[_KERNEL].get("turns"),
        "bytes_per_s": None,
        "flops_per_s": None,
        "of_copy": None,
        "of_matmul": None,
        "rivals": rivals,
        "failed_rivals": {who: t["fault"] for who, t in times.items() if who in case.rivals and t.get("fault")},
        "bar": case.bar and case.bar[1],
        "of": case.bar and case.bar[0],
        "share": None,
        "reached": None,
    }
    if not record["ms"]:
        return record
    for count, rate, share in ((case.bytes, "bytes_per_s", "of_copy"), (case.flops, "flops_per_s", "of_matmul")):
        if count:
            record[rate] = count / record["ms"] * 1e3
            record[share] = record[rate] / ceiling[rate] if ceiling.get(rate) else None
    if case.bar:
        of, bar = case.bar
        shares = {"bytes": record["of_copy"], "flops": record["of_matmul"]}
        against = [time for who, time in rivals.items() if who.startswith(of)]
        reached = min(against) / record["ms"] if against else shares.get(of)
        if reached is not None:
            record |= {"share": reached, "reached": reached >= bar}
    return record


def _faults(ceiling: Record, records: list[Record]) -> Iterator[tuple[str, str]]:
    for name, record in [(_CEILINGS, ceiling), *((record["case"], record) for record in records)]:
        if record.get("fault"):
            yield name, record["fault"]


def _table(records: list[Record]) -> str:
    def row(record: Record) -> list[Any]:
        rivals = record["rivals"]
        best = min(rivals, key=lambda who: rivals[who]) if rivals else None
        return [
            record["case"],
            _scaled(record["ms"], 1e3),
            _scaled(record["copy_ms"], 1e3),
            _scaled(record["bytes_per_s"], 1e-9),
            _scaled(record["of_copy"], 100),
            _scaled(record["flops_per_s"], 1e-12),
            _scaled(record["of_matmul"], 100),
            _bar(record),
            best or "-",
            _scaled(rivals[best], 1e3) if best else "-",
            f"{rivals[best] / record['ms']:.2f}" if best and record["ms"] else "-",
        ]

    columns = ["case", "us", "copy us", "GB/s", "% copy", "TFLOP/s", "% matmul", "bar", "best rival", "us", "x"]
    return table(columns, [row(record) for record in records])


def _bar(record: Record) -> str:
    """The share that was reached beside the one that is to be."""
    if record["bar"] is None:
        return "-"
    bar = f"{record['bar']:.0%} {record['of'].partition(',')[0]}"
    return f"{record['share']:.0%} {'>=' if record['reached'] else '<'} {bar}" if record["share"] else f"open: {bar}"


def _scaled(value: float | None, by: float) -> str:
    return "-" if value is None else f"{value * by:.{1 if value * by >= 10 else 2}f}"


if __name__ == "__main__":
    sys.exit(main())
