"""The scheduler's benchmark runs the scheduler: every step is of one kind, and all kinds come up."""

from __future__ import annotations

import pytest

from benchmarks.scheduler import measure


@pytest.mark.parametrize("cache", [False, True])
def test_every_step_is_counted_once(cache: bool) -> None:
    rows = measure(2, 400, cache=cache)
    assert {row["step"] for row in rows} == {"steady", "growing", "turnover"}
    assert sum(row["steps"] for row in rows) == 400
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
