"""Two result files side by side: which figures became better or worse by more than their noise.

    python -m benchmarks.compare OLD.json NEW.json [--all]

Records are matched by name. A figure with repeats has a band around its median: between the order statistics that
hold the true median with 95% confidence whatever the distribution, which with fewer than six repeats are the least and
the largest one (of n repeats these hold it with 1 - 2^(1-n)). Where the bands do not touch, the figure is better or
worse, else within noise. Figures without repeats are listed, and not judged. Exits with 1 where something is worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

from benchmarks.report import table

CONFIDENCE = 0.95
_MORE_IS_BETTER = ("_per_s", "ratio", "hits", "per_core")
_NAMES = ("name", "case", "way")
_FIGURES = ("_ms", "_s", "_us", "_bytes", *_MORE_IS_BETTER)
_SETTINGS = (
    *("model", "precision", "prompt", "tokens", "graphs", "ahead"),
    *("experts", "linears", "kv", "context", "caches", "resize"),
)
_SAME = ("device", "threads", "torch", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """value as reported, and the band of its repeats' median where there are any."""

    value: float
    band: tuple[float, float] | None = None


def band(repeats: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics, alike far from both ends, that holds the median so surely."""
    ordered, n = sorted(repeats), len(repeats)
    cut = outside = 0
    while cut < n // 2:
        outside += comb(n, cut)
        if 2 * outside > (1 - CONFIDENCE) * 2**n:
            break
        cut += 1
    first = max(0, cut - 1)
    return ordered[first], ordered[n - 1 - first]


def verdict(name: str, old: Figure, new: Figure) -> str:
    if old.band is None or new.band is None:
        return "no repeats"
    if new.band[0] <= old.band[1] and old.band[0] <= new.band[1]:
        return "within noise"
    return "better" if (new.value > old.value) == name.endswith(_MORE_IS_BETTER) else "worse"


def figures(result: dict[str, Any]) -> dict[tuple[str, str], Figure]:
    """(record, figure) -> Figure, of all records in a result, however deep."""
    return dict(_figures(result, ""))


def _figures(node: Any, path: str) -> Iterator[tuple[tuple[str, str], Figure]]:
    if isinstance(node, list):
        for item in node:
            yield from _figures(item, path)
    if not isinstance(node, dict):
        return
    name = next((str(node[key]) for key in _NAMES if isinstance(node.get(key), str)), "")
    path = ", ".join(filter(None, (path, name)))
    repeats = node.get("repeats")
    repeats = repeats if isinstance(repeats, dict) else {}
    for key, value in node.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and isinstance(repeats.get(key), list) and repeats[key]:
            yield (path, key), Figure(value=float(value), band=band(repeats[key]))
        elif number and _is_figure(key):
            yield (path, key), Figure(value=float(value))
        elif key not in ("repeats", "environment", "needs", "published") or (key == "repeats" and not _lists(value)):
            yield from _figures(value, path)


def _is_figure(key: str) -> bool:
    return (key == "ms" or key.endswith(_FIGURES)) and "floor" not in key


def _lists(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, list) for each in value.values())


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    before, after = figures(old), figures(new)
    return [
        {
            "record": record,
            "figure": name,
            "old": before[record, name],
            "new": after[record, name],
            "verdict": verdict(name, before[record, name], after[record, name]),
        }
        for record, name in before
        if (record, name) in after
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true", help="list figures without repeats, too")
    parser.add_argument("--json", metavar="FILE", help="write all verdicts")
    options = parser.parse_args(argv)
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    if old.get("benchmark") != new.get("benchmark"):
        parser.error(f"one file is of {old.get('benchmark')}, the other of {new.get('benchmark')}")
    for line in _differences(old, new):
        print(line)
    found = compare(old, new)
    shown = [row for row in found if options.all or row["verdict"] != "no repeats"]
    print(table(["record", "figure", "old", "band", "new", "band", "new / old", "verdict"], list(map(_row, shown))))
    counts = {word: sum(row["verdict"] == word for row in found) for word in ("better", "worse", "within noise")}
    lost = [f"{record}: {name}".strip(": ") for record, name in figures(old) if (record, name) not in figures(new)]
    counts["not in both"] = len(lost) + sum(key not in figures(old) for key in figures(new))
    counts["no repeats"] = sum(row["verdict"] == "no repeats" for row in found)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    if options.json:
        plain = [row | {side: row[side].value for side in ("old", "new")} for row in found]
        Path(options.json).write_text(json.dumps({"benchmark": "compare", "results": plain}, indent=1) + "\n")
    return 1 if counts["worse"] or not found else 0


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What makes two files hard to compare."""
    places = [result.get("environment", {}) for result in (old, new)]
    for key in _SETTINGS:
        if old.get(key) != new.get(key):
            yield f"DIFFERENT {key}: {old.get(key)} and {new.get(key)}"
    for key in _SAME:
        if places[0].get(key) != places[1].get(key):
            yield f"DIFFERENT {key}: {places[0].get(key)} and {places[1].get(key)}"
    yield f"commits {places[0].get('commit')} and {places[1].get('commit')}"


def _row(row: dict[str, Any]) -> list[Any]:
    old, new = row["old"], row["new"]
    ratio = f"{new.value / old.value:.3f}" if old.value else "-"
    return [row["record"], row["figure"], *_cells(old), *_cells(new), ratio, row["verdict"]]


def _cells(figure: Figure) -> list[str]:
    if figure.band is None:
        return [f"{figure.value:.4g}", "-"]
    return [f"{figure.value:.4g}", f"{figure.band[0]:.4g} .. {figure.band[1]:.4g}"]


if __name__ == "__main__":
    sys.exit(main())
