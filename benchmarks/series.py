"""What of result files can be drawn: panels of series, found without drawing anything.

A panel is made of all files of one benchmark: milliseconds of decoding by batch, of vision by crops, of prefill by
length, requests/s and waiting times by clients. Its lines bear the names of what tells the files apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.compare import band

Result = dict[str, Any]
Point = tuple[float, float, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """points are (x, y, (least, greatest y of the repeats' band)), by x; a floor has the label of what it is below."""

    label: str
    points: tuple[Point, ...]
    kind: Literal["measured", "floor", "published"] = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """`doubling`: x goes by powers of two."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    doubling: bool = False


def panels(results: Sequence[Result]) -> list[Panel]:
    """Of all that is known how to draw, in the order of decode, vision, prefill, throughput."""
    found: list[Panel] = []
    for benchmark, make in _PANELS.items():
        chosen = [result for result in results if result.get("benchmark") == benchmark]
        found += make(list(zip(_names(chosen), chosen, strict=True)))
    return [panel for panel in found if panel.series]


def subtitle(results: Sequence[Result]) -> str:
    """What all files have in common of what a figure is worth nothing without."""
    return ", ".join(value for name, values in _told(results).items() for value in values[:1] if _same(values))


def _told(results: Sequence[Result]) -> dict[str, list[str]]:
    """By what it says, of each file."""
    found = {
        "device": [str(result.get("environment", {}).get("device", "")) for result in results],
        "model": [str(result.get("model", "")) for result in results],
        "precision": [str(result.get("precision", "")) for result in results],
        "commit": [f"commit {result.get('environment', {}).get('commit')}" for result in results],
    }
    return {name: values for name, values in found.items() if any(values)}


def _same(values: Sequence[str]) -> bool:
    return len(set(values)) == 1


def _names(results: Sequence[Result]) -> list[str]:
    """Of each file, what the others do not have in common with it."""
    differing = [values for values in _told(results).values() if not _same(values)]
    return [", ".join(values[i] for values in differing) for i in range(len(results))]


def _lines(label: str, records: Iterable[Result], x: Callable[[Result], float], y: str, floor: str) -> list[Series]:
    """What was measured, and where there is one its floor."""
    records = sorted(records, key=x)
    measured = tuple((x(r), float(r[y]), _band(r, y)) for r in records)
    floors = tuple((x(r), float(r[floor]), (float(r[floor]),) * 2) for r in records if r.get(floor) is not None)
    kinds: list[tuple[tuple[Point, ...], Literal["measured", "floor"]]] = [(measured, "measured"), (floors, "floor")]
    return [Series(label=label, points=points, kind=kind) for points, kind in kinds if points]


def _band(record: Result, figure: str) -> tuple[float, float]:
    repeats = record.get("repeats", {}).get(figure)
    value = float(record[figure])
    low, high = band(repeats) if repeats else (value, value)
    return min(low, value), max(high, value)


def _label(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _decode(files: list[tuple[str, Result]]) -> list[Panel]:
    series: list[Series] = []
    for name, result in files:
        ours = [record for record in result["results"] if record["name"].startswith("mdinfer")]
        others = [record for record in result["results"] if record not in ours]
        context = f"context {result['prompt']}"
        for label, records in ((context, ours), *((f"{context}, {r['name']}", [r]) for r in others)):
            series += _lines(_label(name, label), records, lambda r: r["batch"], "decode_ms", "floor_ms")
    title = "Decoding: a token of each sequence"
    return [Panel(title=title, x="batch", y="ms", series=tuple(series), doubling=True)]


def _vision(files: list[tuple[str, Result]]) -> list[Panel]:
    series: list[Series] = []
    for name, result in files:
        for pictures in sorted({record["pictures"] for record in result["results"]}):
            records = [record for record in result["results"] if record["pictures"] == pictures]
            label = _label(name, f"{pictures} picture{'s' * (pictures > 1)}")
            series += _lines(label, records, lambda r: r["crops"] * r["pictures"], "vision_ms", "floor_ms")
    return [Panel(title="Vision tower", x="crops", y="ms", series=tuple(series))]


def _prefill(files: list[tuple[str, Result]]) -> list[Panel]:
    series: list[Series] = []
    for name, result in files:
        kinds = sorted({(record["cached"] > 0, record["requests"]) for record in result["results"]})
        for cached, requests in kinds:
            records = [r for r in result["results"] if (r["cached"] > 0, r["requests"]) == (cached, requests)]
            label = _label(name, f"{requests} prompt{'s' * (requests > 1)}", "picture cached" * cached)
            series += _lines(label, records, lambda r: r["prompt"], "prefill_ms", "floor_ms")
    return [Panel(title="Prefill", x="positions of a prompt", y="ms", series=tuple(series))]


def _throughput(files: list[tuple[str, Result]]) -> list[Panel]:
    """Two panels for each length of answers: requests/s, and ms to an answer."""
    found = []
    for answers in sorted({record["answers"] for _, result in files for record in result.get("charts", ())}):
        rates: list[Series] = []
        waits: list[Series] = []
        for name, result in files:
            records = [record for record in result.get("charts", ()) if record["answers"] == answers]
            for state in sorted({record["state"] for record in records}, key=("clean", "again").index):
                chosen, label = [r for r in records if r["state"] == state], _label(name, f"caches {state}")
                rates += _lines(label, chosen, lambda r: r["clients"], "requests_per_s", "floor_per_s")
                for share in ("p50", "p90"):
                    waits += _lines(f"{label}, {share}", chosen, lambda r: r["clients"], f"{share}_ms", "no floor")
        published = {str(peer): peer for _, result in files for peer in result.get("published", ())}.values()
        peers = [peer for peer in published if peer["answers"] == answers]
        rates += _published(peers, "requests_per_s", "")
        waits += _published(peers, "p50_ms", ", p50")
        for title, y, series in (("Requests/s", "requests/s", rates), ("Time to an answer", "ms", waits)):
            full = f"{title}, answers of {answers} tokens"
            found.append(Panel(title=full, x="clients", y=y, series=tuple(series), doubling=True))
    return found


def _published(peers: list[Result], figure: str, what: str) -> list[Series]:
    found = []
    for engine in sorted({peer["engine"] for peer in peers}):
        own = sorted((peer["clients"], float(peer[figure])) for peer in peers if peer["engine"] == engine)
        points = tuple((float(clients), value, (value, value)) for clients, value in own)
        found.append(Series(label=f"{engine}, published{what}", points=points, kind="published"))
    return found


_PANELS: dict[str, Callable[[list[tuple[str, Result]]], list[Panel]]] = {
    "decode": _decode,
    "vision": _vision,
    "prefill": _prefill,
    "throughput": _throughput,
}
