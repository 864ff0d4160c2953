"""What other engines are published to reach on the same load, for chips that it was published for."""

from __future__ import annotations

from typing import Any

# Kestrel, Moondream's own engine: Moondream 3, ChartQA, fp8, prefix cache on, one H100 SXM. By (tokens of an answer,
# batch): requests/s, and ms to an answer at the median. "Direct" answers have about 3 tokens, reasoning ones about 30.
_KESTREL_H100 = {
    (3, 1): (34.6, 46.9),
    (3, 4): (42.4, 83.5),
    (3, 16): (49.1, 166.5),
    (3, 64): (53.0, 371.4),
    (30, 1): (13.5, 132.2),
    (30, 4): (20.8, 195.1),
    (30, 16): (31.7, 418.5),
    (30, 64): (41.5, 1026.6),
}
DIFFERENCES = """Kestrel: published figures for this chip, not measured here. What differs: there real weights in fp8
on ChartQA's own pictures and questions, with answers of about 3 and 30 tokens that end by themselves; here charts drawn
by this script, questions of random words, answers of exactly so many tokens, and the weights, precision and host above.
Its batch is here a number of clients, each with one request under way; by its own latencies it had 1.6, 3.5, 8.2 and
19.7 requests under way on average in direct answers."""


def published(device: str) -> dict[tuple[int, int], tuple[float, float]] | None:
    """By tokens of an answer and batch; None for chips of which nothing is known."""
    return _KESTREL_H100 if "H100" in device and "PCIe" not in device else None


# Its vision tower on the same chip, in ms by crops of a picture.
KESTREL_VISION_MS = {9: 16.4}


def implied_decode_ms(batch: int) -> tuple[float, float]:
    """Between what Kestrel's decoding step takes on an H100, by its published requests/s.

    A reasoning answer takes 27 tokens more than a direct one. What a token costs is a step's time, shared by those that
    decode together: between as many as are under way on average (requests/s times their latency) and `batch`.
    """
    (short, _), (long, p50_ms) = _KESTREL_H100[3, batch], _KESTREL_H100[30, batch]
    token_ms = (1e3 / long - 1e3 / short) / 27
    return token_ms * min(batch, long * p50_ms / 1e3), token_ms * batch


def records(known: dict[tuple[int, int], tuple[float, float]]) -> list[dict[str, Any]]:
    """The same for a result file."""
    return [
        {"engine": "Kestrel", "answers": answers, "clients": batch, "requests_per_s": per_s, "p50_ms": p50}
        for (answers, batch), (per_s, p50) in known.items()
    ]
