"""Draws what result files hold: decoding, vision and prefill beside their floors, requests/s and waiting times.

    python -m benchmarks.plot decode-bf16.json decode-fp8.json --out decode.svg
    python -m benchmarks.plot benchmarks/results/*.json --out all.png

Files of one benchmark share a panel, and files of others are left out. Solid lines are measured, with the band of the
repeats' median (see `benchmarks/compare.py`); dashed ones are the floors that the file holds, crosses what others have
published. Needs matplotlib: `pip install 'mdinfer[plots]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import ResultError, read_result
from benchmarks.series import Panel, Series, panels, subtitle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
_WIDTH, _HEIGHT = 6.0, 4.2  # inches of a panel
_STYLES: dict[str, dict[str, Any]] = {
    "measured": {"marker": "o", "markersize": 4, "linestyle": "-", "capsize": 2},
    "floor": {"linestyle": "--", "linewidth": 1},
    "published": {"marker": "x", "markersize": 7, "linestyle": "none", "color": "black"},
}


class PlotError(Exception):
    """What keeps a plot from being drawn, and what to do about it."""


def draw(found: Sequence[Panel], title: str, out: Path) -> None:
    """Write the panels to an SVG or PNG file. Raises PlotError."""
    if out.suffix.lower() not in FORMATS:
        raise PlotError(f"--out is {out}, it must end in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("plots need matplotlib: pip install 'mdinfer[plots]'")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    figure.suptitle(title, fontsize=8)
    for number, panel in enumerate(found):
        _draw(figure.add_subplot(rows, columns, number + 1), panel)
    try:
        with rc_context({"svg.hashsalt": "mdinfer"}):  # the same file for the same figures
            figure.savefig(out, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise PlotError(f"{out} cannot be written: {error.strerror}") from None


def _draw(axes: Axes, panel: Panel) -> None:
    colours: dict[str, str] = {}
    for series in panel.series:
        if series.kind != "published":
            colours.setdefault(series.label, f"C{len(colours) % 10}")
        _draw_series(axes, series, colours.get(series.label))
    if panel.doubling:
        ticks = sorted({x for series in panel.series for x, *_ in series.points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_ylim(bottom=0)
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)


def _draw_series(axes: Axes, series: Series, colour: str | None) -> None:
    x, y, bands = zip(*series.points, strict=True)
    below = [value - low for value, (low, _) in zip(y, bands, strict=True)]
    above = [high - value for value, (_, high) in zip(y, bands, strict=True)]
    style = {**_STYLES[series.kind], **({} if colour is None else {"color": colour})}
    if series.kind == "measured":
        axes.errorbar(x, y, yerr=(below, above), label=series.label, **style)
    else:
        axes.plot(x, y, label=f"floor of {series.label}" if series.kind == "floor" else series.label, **style)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, nargs="+", help="files that decode, vision, prefill or throughput wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="an .svg or .png file")
    options = parser.parse_args(argv)
    try:
        results = [read_result(path) for path in options.result]
        found = panels(results)
        if not found:
            raise PlotError("nothing to draw: name results of decode, vision, prefill or `throughput --load charts`")
        draw(found, subtitle([result for result in results if panels([result])]), options.out)
    except (PlotError, ResultError) as error:
        print(f"python -m benchmarks.plot: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {', '.join(panel.title for panel in found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
