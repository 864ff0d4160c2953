"""What precision costs in answers: the same questions of `benchmarks.accuracy` in each one, in one run.

    python -m benchmarks.quality --checkpoint demo --cases 60

Every precision answers the same held-out questions, greedy. Shares of groups of tasks come with how many answers were
right in float32 alone, and in this precision alone: rounding at random loses as many as it wins, damage loses more.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

from benchmarks.demo.exam import Case, exam, judge
from benchmarks.report import environment, table, write_json
from mdinfer.engine import Engine

PRECISIONS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "experts fp8": {"dtype": "bfloat16", "experts": "fp8"},
    "experts int8": {"dtype": "bfloat16", "experts": "int8"},
    "experts int4": {"dtype": "bfloat16", "experts": "int4"},
    "linears fp8": {"dtype": "bfloat16", "linears": "fp8"},
    "cache fp8": {"dtype": "bfloat16", "kv_dtype": "fp8"},
    "all fp8": {"dtype": "bfloat16", "experts": "fp8", "linears": "fp8", "kv_dtype": "fp8"},
}
"""Options of the engine; the first is what the others are held against."""

GROUPS = {
    "sums and word problems": ("arithmetic", "word problem"),
    "names and other talk": ("name", "told", "fact", "small talk", "refusal", "poem"),
    "counts": ("count", "grounded count"),
    "colors, shapes, presence": ("colour of", "shape of", "presence", "background"),
    "places": ("relation", "spatial"),
    "captions, descriptions, lists": ("caption", "describe", "list", "no shapes"),
    "two pictures, later pictures": ("two pictures", "picture in"),
    "boxes and points": ("detect", "point", "grounding"),
}
"""Tasks by what their names begin with."""


def answered(engine: Engine, cases: list[Case], *, progress: bool = False) -> list[list[tuple[str, int, int]]]:
    """(group, right, count) of each score of each case."""
    results = engine.generate([case.request for case in cases], progress=progress)
    return [
        [(group_of(task), score.right, score.count) for task, score in judge(case, result)]
        for case, result in zip(cases, results, strict=True)
    ]


def group_of(task: str) -> str:
    """Raises StopIteration for a task of no group."""
    return next(group for group, names in GROUPS.items() if task.startswith(names))


def compared(found: list[list[tuple[str, int, int]]], first: list[list[tuple[str, int, int]]]) -> list[dict[str, Any]]:
    """A record a group: right and count here, and the scores that are worse and better than in `first`."""
    tallies: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for here, there in zip(found, first, strict=True):
        for (group, right, count), (_, before, _) in zip(here, there, strict=True):
            for i, more in enumerate((right, count, max(0, before - right), max(0, right - before))):
                tallies[group][i] += more
    return [
        {"group": group, **dict(zip(("right", "count", "lost", "won"), tallies[group], strict=True))}
        for group in GROUPS
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    chosen = {name: options for name, options in PRECISIONS.items() if name in (arguments.only or PRECISIONS)}
    cases = exam(arguments.seed, arguments.cases)
    first: list[list[tuple[str, int, int]]] = []
    results, shares = [], dict[str, list[str]]((group, []) for group in (*GROUPS, "all"))
    device = None
    for name, options in chosen.items():
        with Engine.load(arguments.checkpoint, device=arguments.device, progress=False, **options) as engine:
            found = answered(engine, cases, progress=True)
            device = engine._loaded.model.device
        first = first or found
        records = compared(found, first)
        whole = {key: sum(record[key] for record in records) for key in ("right", "count", "lost", "won")}
        records.append({"group": "all", **whole})
        for record in records:
            record["share"] = record["right"] / max(record["count"], 1)
            changed = f" (-{record['lost']} +{record['won']})" if first is not found else f" of {record['count']}"
            shares[record["group"]].append(f"{record['share']:.3f}{changed}")
        results.append({"precision": name, "options": options, "groups": records})
    assert device is not None, "no precision of that name"
    result = {
        "benchmark": "quality",
        "environment": environment(device),
        "model": arguments.checkpoint,
        "cases": arguments.cases,
        "seed": arguments.seed,
        "results": results,
    }
    print(table(["questions", *chosen], [[group, *row] for group, row in shares.items()]))
    write_json(arguments.json, result)
    return result


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="demo", help='directory, file or repository id (default: "demo")')
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", choices=PRECISIONS, metavar="NAME", help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--cases", type=int, default=60, help="of each kind of question (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
