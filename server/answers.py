"""Results as JSON in Moondream's own shapes, for its endpoints and for the command line's --json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdinfer.request import Caption, Detect, Point, Query, Request
from mdinfer.result import Grounding, Metrics, Result, Usage


def answer(request: Request, result: Result) -> dict[str, Any]:
    """The fields of a finished skill request."""
    return {**_content(request, result), "finish_reason": result.finish_reason, "metrics": metrics(result)}


def _content(request: Request, result: Result) -> dict[str, Any]:
    match request:
        case Caption():
            return {"caption": result.text}
        case Detect():
            return {"objects": [box._asdict() for box in result.objects]}
        case Point():
            return {"points": [point._asdict() for point in result.points]}
        case Query(reasoning=True):
            return {"answer": result.text, "reasoning": reasoning(result)}
        case _:
            return {"answer": result.text}


def reasoning(result: Result) -> dict[str, Any]:
    return {"text": result.reasoning or "", "grounding": grounding(result.grounding)}


def grounding(records: Sequence[Grounding]) -> list[dict[str, Any]]:
    """Points as [x, y] pairs, each record with the characters of the trace it belongs to."""
    return [
        {
            "start_idx": record.start_idx,
            "end_idx": record.end_idx,
            "points": [list(xy) for xy in record.points],
        }
        for record in records
    ]


def metrics(result: Result) -> dict[str, Any]:
    usage: Usage = result.usage
    times: Metrics = result.metrics
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "prefill_time_ms": _ms(times.prefill_s),
        "decode_time_ms": _ms(times.decode_s),
        "ttft_ms": _ms(times.ttft_s),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
