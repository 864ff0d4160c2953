"""The golden requests through the engine, alone and all together: `python -m benchmarks.golden --device cuda`.

In float32 every answer must be the golden one, token by token; in bfloat16 those must whose choices were all clear,
and of the others it is told how many are equal. Exits with 1 where an answer that must be equal is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.apart import Record
from benchmarks.report import environment, table, write_json
from mdinfer import Engine
from mdinfer.request import Request
from mdinfer.result import Result
from tests.golden_data import CHECKPOINTS, Case, cases, chat_of, check, load_engine, request_of

CLEAR_MARGIN = 0.3  # of logits, between the best token and the next: below it the oracle's own bfloat16 run differs
_DIFFERENT = "another answer"
_WAIT_S = 120


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    where = environment(torch.device(options.device))
    records: list[Record] = []
    for dtype in options.dtype:
        for name in options.checkpoint:
            records += [{"dtype": dtype, "checkpoint": name, **r} for r in _answers(name, dtype, options)]
            # Each time, for what comes next may take too long or end the process.
            write_json(options.json, {"benchmark": "golden", "environment": where, "results": records})
    print(_table(records))
    faults = [record for record in records if record["fault"]]
    for record in faults:
        print(f"FAULT {record['dtype']} {record['way']} {record['case']}: {record['fault']}")
    print(f"{len(records)} answers, {len(faults)} with faults")
    return 1 if faults or not records else 0


def _answers(name: str, dtype: str, options: argparse.Namespace) -> list[Record]:
    """One record an answer, or a single one of why there are none."""
    try:
        with load_engine(name, device=options.device, dtype=dtype, **dict(options.option)) as engine:
            records = ask(engine, work_of(name, options.limit))
    except Exception as error:
        records = [_record("none", name, 0.0, f"{type(error).__name__}: {error}", 0.0)]
    for record in records:
        harmless = record["wrong"] == _DIFFERENT and not must_be_equal(dtype, record["margin"])
        record["fault"] = "" if harmless else record["wrong"]
    return records


def _parse(argv: list[str] | None) -> argparse.Namespace:
    def option(text: str) -> tuple[str, Any]:
        name, _, value = text.partition("=")
        return name, int(value) if value.isdigit() else {"true": True, "false": False}.get(value.lower(), value)

    parser = argparse.ArgumentParser(prog="python -m benchmarks.golden", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--checkpoint", nargs="+", default=CHECKPOINTS, choices=CHECKPOINTS)
    parser.add_argument("--limit", type=int, help="only the first cases of each checkpoint")
    parser.add_argument(
        "--option", type=option, action="append", default=[], metavar="NAME=VALUE", help="of the engine; repeatable"
    )
    parser.add_argument("--json", metavar="FILE", help="write every answer's verdict")
    return parser.parse_args(argv)


def work_of(name: str, limit: int | None = None) -> list[tuple[Case, Request]]:
    """The requests of a checkpoint, conversations too."""
    found: list[tuple[Case, Request]] = [(case, request_of(case)) for case in cases(name, "e2e")]
    found += [(case, chat_of(case)) for case in cases(name, "chat")]
    return found[:limit]


def ask(engine: Engine, work: list[tuple[Case, Request]]) -> list[Record]:
    """One record an answer: first each request alone, then all at the same time."""
    records = [_judged("alone", case, engine.submit(request).result) for case, request in work]
    together = [(case, engine.submit(request)) for case, request in work]
    return records + [_judged("together", case, handle.result) for case, handle in together]


def must_be_equal(dtype: str, margin: float) -> bool:
    return dtype == "float32" or margin >= CLEAR_MARGIN


def _judged(way: str, case: Case, result: Callable[..., Result]) -> Record:
    start, wrong = time.perf_counter(), ""
    try:
        check(case, result(timeout=_WAIT_S))
    except AssertionError:
        wrong = _DIFFERENT
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    return _record(way, case["id"], case["min_margin"], wrong, time.perf_counter() - start)


def _record(way: str, case: str, margin: float, wrong: str, seconds: float) -> Record:
    return {"way": way, "case": case, "margin": margin, "wrong": wrong, "seconds": seconds}


def _table(records: list[Record]) -> str:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["dtype"], record["checkpoint"], record["way"]), []).append(record)
    rows = [
        [
            *key,
            len(group),
            sum(not r["wrong"] for r in group),
            sum(must_be_equal(r["dtype"], r["margin"]) for r in group),
        ]
        for key, group in groups.items()
    ]
    return table(["dtype", "checkpoint", "way", "answers", "equal", "must be"], rows)


if __name__ == "__main__":
    sys.exit(main())
