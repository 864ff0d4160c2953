"""Writes README's figures anew from the result files, or says which are stale.

    python -m benchmarks.readme                     after a benchmark wrote its --json to benchmarks/results
    python -m benchmarks.readme --check             changes nothing; exits with 1 where a block is stale

A block is what stands between the lines `<!-- figures: NAME -->` and `<!-- end -->`; `benchmarks/blocks.py` makes it.
Of the result files only a GPU's (gpu-*.json) may be missing: what they would hold is then "not measured".
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.blocks import BLOCKS
from benchmarks.report import ResultError

ROOT = Path(__file__).parents[1]
_MARKER = re.compile(r"\s*<!--\s*(?:figures:\s*(?P<name>.*?)|(?P<end>end))\s*-->\s*")


class MarkerError(Exception):
    """A line of the README that begins or ends no block."""


def rewritten(text: str, make: Callable[[str], str]) -> tuple[str, list[str]]:
    """The text with every block as `make` says, and the names of those that it changed. Raises MarkerError."""
    lines: list[str] = []
    stale: list[str] = []
    name, begun, block = None, 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        marker = _MARKER.fullmatch(line)
        if marker is None:
            (lines if name is None else block).append(line)
        elif marker["end"] is None:
            if name is not None:
                raise MarkerError(f"line {begun}: the block {name} has no `<!-- end -->`")
            name, begun = marker["name"], number
            if name not in BLOCKS:
                raise MarkerError(f"line {number}: no block is called {name!r}, but {', '.join(BLOCKS)}")
            lines.append(line)
        else:
            if name is None:
                raise MarkerError(f"line {number}: this ends no block")
            made = make(name).splitlines()
            if made != block:
                stale.append(name)
            lines += [*made, line]
            name, block = None, []
    if name is not None:
        raise MarkerError(f"line {begun}: the block {name} has no `<!-- end -->`")
    return "\n".join(lines) + "\n", stale


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say which blocks are stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    options = parser.parse_args(argv)
    try:
        text, stale = rewritten(options.readme.read_text(encoding="utf-8"), lambda name: BLOCKS[name](options.results))
    except MarkerError as error:
        raise SystemExit(f"{options.readme}, {error}") from None
    except ResultError as error:
        raise SystemExit(str(error)) from None
    if not stale:
        print(f"{options.readme} is up to date")
    elif options.check:
        print(f"{options.readme} is stale: {', '.join(stale)}; run python -m benchmarks.readme")
    else:
        options.readme.write_text(text, encoding="utf-8")
        print(f"{options.readme}: written anew: {', '.join(stale)}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
