"""What a checkpoint gets right: fresh pictures and dialogues of the demo's world, through the engine, greedy.

    python -m benchmarks.accuracy --checkpoint demo
    python -m benchmarks.accuracy --checkpoint DIRECTORY --experts fp8 --cases 400 --json result.json

All questions are of held-out splits (`benchmarks/demo/words.py`): names, pairs of numbers, looks of shapes, objects of
word problems, subjects that the demo's training never saw; with `--seen`, fresh ones of those it did. Shares come with
95% Wilson intervals.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from typing import Any

from benchmarks.demo.exam import TARGETS, Case, Score, exam, judge
from benchmarks.demo.examples import judge_examples
from benchmarks.report import environment, table, write_json
from mdinfer.engine import Engine


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share that `right` of `count` suggests."""
    if count == 0:
        return 0.0, 1.0
    p, spread = right / count, z * z / count
    middle, half = p + spread / 2, z * math.sqrt(p * (1 - p) / count + spread / (4 * count))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def measure(engine: Engine, cases: list[Case], *, progress: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """One record a task, in order of name, and the first mistakes of each."""
    results = engine.generate([case.request for case in cases], progress=progress)
    scores: dict[str, list[Score]] = defaultdict(list)
    mistakes: dict[str, list[str]] = defaultdict(list)
    for case, result in zip(cases, results, strict=True):
        for task, score in judge(case, result):
            scores[task].append(score)
            if score.right < score.count and len(mistakes[task]) < 5:
                mistakes[task].append(f"{task}: {score.note}")
    records = []
    for task in sorted(scores):
        right, count = sum(s.right for s in scores[task]), sum(s.count for s in scores[task])
        low, high = wilson(right, count)
        target = TARGETS.get(task)
        records.append(
            {
                "task": task,
                "right": right,
                "count": count,
                "share": right / max(count, 1),
                "low": low,
                "high": high,
                "target": target,
            }
        )
    return records, [line for task in sorted(mistakes) for line in mistakes[task]]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    options = {name: getattr(arguments, name) for name in ("device", "dtype", "experts", "linears")}
    with Engine.load(arguments.checkpoint, progress=False, **options) as engine:
        start = time.perf_counter()
        records, mistakes = measure(
            engine, exam(arguments.seed, arguments.cases, held_out=not arguments.seen), progress=True
        )
        examples = judge_examples(engine, draws=arguments.draws)
        result = {
            "benchmark": "accuracy",
            "environment": environment(engine._loaded.model.device),
            "model": arguments.checkpoint,
            "precision": engine.description(),
            "seed": arguments.seed,
            "splits": "seen" if arguments.seen else "held out",
            "seconds": time.perf_counter() - start,
            "results": records,
            "examples": examples,
        }
    print(engine.description())
    rows = [
        [r["task"], r["right"], r["count"], r["share"], f"{r['low']:.2f}..{r['high']:.2f}", _verdict(r)]
        for r in records
    ]
    print(table(["task", "right", "of", "share", "95%", "target"], rows), "\n")
    print(table(["page's example", "right", "of"], [[e["example"], e["right"], e["count"]] for e in examples]))
    if arguments.mistakes:
        print("\n" + "\n".join(mistakes + [f"{e['example']}: {m}" for e in examples for m in e["mistakes"][:3]]))
    write_json(arguments.json, result)
    return result


def _verdict(record: dict[str, Any]) -> str:
    if record["target"] is None:
        return ""
    return f"{record['target']:.2f} {'met' if record['share'] >= record['target'] else 'MISSED'}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="demo", help='directory, file or repository id (default: "demo")')
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--experts", default="auto", choices=("auto", "bf16", "fp8", "int8", "int4"))
    parser.add_argument("--linears", default="auto", choices=("auto", "bf16", "fp8"))
    parser.add_argument("--cases", type=int, default=200, help="of each kind of question (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=20, help="of each example at the default temperature")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seen", action="store_true", help="ask of the splits that training saw")
    parser.add_argument("--mistakes", action="store_true", help="print the first mistakes of each task")
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
