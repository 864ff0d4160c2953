"""Work apart: what fails is told, the rest is done, by as few processes as can be."""

from __future__ import annotations

import os

import pytest

from benchmarks.kernels import apart
from tests.benchmarks.kernels.fakes import work


def run(*what: str, **options: float) -> list[apart.Record]:
    return list(apart.each(work, [(w,) for w in what], apart=True, **options))


def test_in_this_process() -> None:
    found = list(apart.each(work, [("a",), ("raise",), ("b",)], apart=False))
    assert found == [
        {"process": os.getpid(), "what": "a"},
        {"fault": "ValueError: no good"},
        {"process": os.getpid(), "what": "b"},
    ]


def test_a_failure_ends_its_process_only() -> None:
    one, two, raised, three, died, four = run("1", "2", "raise", "3", "die", "4")
    assert [one["what"], two["what"], three["what"], four["what"]] == ["1", "2", "3", "4"]
    assert one["process"] == two["process"]
    assert len({os.getpid(), one["process"], three["process"], four["process"]}) == 4
    assert raised == {"fault": "ValueError: no good"}
    assert died == {"fault": "the process ended with exit code 7"}


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_START_S", 0)  # only what has begun to hang does not answer
    monkeypatch.setattr(apart, "_Worker", _patient_worker())
    first, hung, last = run("1", "hang", "2", timeout_s=0.5)
    assert (first["what"], hung, last["what"]) == ("1", {"fault": "no answer within 0 s"}, "2")


def _patient_worker() -> type[apart._Worker]:
    class Worker(apart._Worker):
        """Answers a first question for certain, so that the time of a start is none of an item's."""

        def __init__(self, work: apart.Work) -> None:
            super().__init__(work)
            assert super().ask(("ready",), 60)["what"] == "ready"

    return Worker


def test_no_time_left() -> None:
    assert run("1", "2", budget_s=-1) == [{"fault": "not reached in time"}] * 2
