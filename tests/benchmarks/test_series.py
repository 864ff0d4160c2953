"""What is drawn is what the files hold: every figure once, floors below, bands around; no drawing is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers
from benchmarks.compare import figures
from benchmarks.series import Panel, Series, panels, subtitle

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def committed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def made(benchmark: str, **more: Any) -> dict[str, Any]:
    environment = {"device": "Made-up H100", "commit": "abc"}
    return {"benchmark": benchmark, "environment": environment, "model": "random full", "precision": "bf16", **more}


def decode(prompt: int, precision: str = "bf16") -> dict[str, Any]:
    records = [
        {
            "name": f"mdinfer, batch {batch}",
            "batch": batch,
            "decode_ms": 2.0 * batch,
            "floor_ms": 1.0 * batch,
            "repeats": {"decode_ms": [2.0 * batch, 3.0 * batch, 1.5 * batch]},
        }
        for batch in (4, 1)
    ]
    return made("decode", prompt=prompt, results=records) | {"precision": precision}


def throughput() -> dict[str, Any]:
    records = [
        {
            "name": f"{answers} tokens, {clients} clients, {state}",
            "answers": answers,
            "clients": clients,
            "state": state,
            "requests_per_s": 10.0 * clients + answers,
            "p50_ms": 50.0,
            "p90_ms": 90.0,
            "floor_per_s": 100.0 if state == "clean" else None,
            "repeats": {"requests_per_s": [10.0 * clients], "p50_ms": [50.0], "p90_ms": [90.0]},
        }
        for answers in (3, 30)
        for clients in (1, 4)
        for state in ("clean", "again")
    ]
    known = peers.published("NVIDIA H100 80GB HBM3")
    assert known is not None
    return made("throughput", charts=records, published=peers.records(known))


def only(panel: Panel, kind: str) -> list[Series]:
    return [series for series in panel.series if series.kind == kind]


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("cpu-*.json")))
def test_committed_decoding(name: str) -> None:
    result = committed(name)
    [panel] = panels([result])
    assert panel.doubling and not only(panel, "floor")
    drawn = {(x, y) for series in panel.series for x, y, _ in series.points}
    assert drawn == {(record["batch"], record["decode_ms"]) for record in result["results"]}
    known = figures(result)
    [ours] = [series for series in panel.series if series.label == f"context {result['prompt']}"]
    for batch, ms, (low, high) in ours.points:
        band = known[f"mdinfer, batch {batch}", "decode_ms"].band
        assert low <= ms <= high and (band is None or (low, high) == (min(band[0], ms), max(band[1], ms)))


def test_committed_files_of_other_benchmarks_are_left_out() -> None:
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    assert [panel.title for panel in panels(results)] == ["Decoding: a token of each sequence"]


def test_a_line_for_each_context_beside_its_floor() -> None:
    results = [decode(200), decode(800)]
    [panel] = panels(results)
    assert [(series.label, series.kind) for series in panel.series] == [
        *(("context 200", "measured"), ("context 200", "floor")),
        *(("context 800", "measured"), ("context 800", "floor")),
    ]
    assert panel.series[0].points == ((1, 2.0, (1.5, 3.0)), (4, 8.0, (6.0, 12.0)))
    assert panel.series[1].points == ((1, 1.0, (1.0, 1.0)), (4, 4.0, (4.0, 4.0)))
    assert subtitle(results) == "Made-up H100, random full, bf16, commit abc"


def test_labels_say_what_tells_files_apart() -> None:
    results = [decode(800), decode(800, "fp8")]
    [panel] = panels(results)
    assert [series.label for series in only(panel, "measured")] == ["bf16, context 800", "fp8, context 800"]
    assert subtitle(results) == "Made-up H100, random full, commit abc"


def test_other_contenders_are_lines_of_their_own() -> None:
    plain = {"name": "plain torch", "batch": 1, "decode_ms": 9.0}
    result = decode(200)
    result["results"].append(plain)
    [panel] = panels([result])
    assert only(panel, "measured")[1] == Series(label="context 200, plain torch", points=((1, 9.0, (9.0, 9.0)),))


def test_vision_by_crops_of_all_pictures() -> None:
    records: list[dict[str, Any]] = [
        {"crops": crops, "pictures": pictures, "vision_ms": 1.0 * crops, "floor_ms": None, "repeats": {}}
        for pictures in (2, 1)
        for crops in (9, 2)
    ]
    [panel] = panels([made("vision", results=records)])
    one, two = panel.series
    assert (one.label, two.label) == ("1 picture", "2 pictures")
    assert [x for x, *_ in one.points] == [2, 9] and [x for x, *_ in two.points] == [4, 18]


def test_prefill_by_length_number_and_cache() -> None:
    records = [
        {"prompt": prompt, "requests": requests, "cached": cached, "prefill_ms": 5.0, "floor_ms": 3.0}
        for prompt, cached in ((1600, 730), (775, 730), (775, 0), (45, 0))
        for requests in (8, 1)
    ]
    [panel] = panels([made("prefill", results=records)])
    found = {series.label: [x for x, *_ in series.points] for series in only(panel, "measured")}
    assert found == {
        "1 prompt": [45, 775],
        "8 prompts": [45, 775],
        "1 prompt, picture cached": [775, 1600],
        "8 prompts, picture cached": [775, 1600],
    }
    assert len(only(panel, "floor")) == 4


def test_throughput_beside_floors_and_published_figures() -> None:
    rates, waits, *long = panels([throughput()])
    assert [panel.title for panel in (rates, waits)] == [
        *("Requests/s, answers of 3 tokens", "Time to an answer, answers of 3 tokens"),
    ]
    assert [panel.title.split(", ")[1] for panel in long] == ["answers of 30 tokens"] * 2
    assert [series.label for series in only(rates, "measured")] == ["caches clean", "caches again"]
    assert [series.label for series in only(rates, "floor")] == ["caches clean"]
    assert only(rates, "measured")[0].points == ((1, 13.0, (10.0, 13.0)), (4, 43.0, (40.0, 43.0)))
    [theirs] = only(rates, "published")
    assert theirs.label == "Kestrel, published" and [x for x, *_ in theirs.points] == [1, 4, 16, 64]
    assert theirs.points[0][1] == 34.6 and only(long[0], "published")[0].points[3][1] == 41.5
    assert [series.label for series in waits.series] == [
        *("caches clean, p50", "caches clean, p90", "caches again, p50", "caches again, p90"),
        "Kestrel, published, p50",
    ]


def test_published_figures_of_two_files_are_shown_once() -> None:
    rates, *_ = panels([throughput(), throughput() | {"precision": "fp8"}])
    [theirs] = only(rates, "published")
    assert len(theirs.points) == 4


def test_published_figures_are_none_of_ours_to_compare() -> None:
    assert not any("Kestrel" in record or not record for record, _ in figures(throughput()))
