"""The siege runs, small, and tells a limit that holds from one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import siege, siege_attacks
from benchmarks.siege_attacks import Figure

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")


def test_a_small_siege(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "siege.json"
    names = [name for name in siege_attacks.ATTACKS if name != "halves"]  # which waits for the server's 20 s
    siege.main(["--only", *names, "--scale", "0.04", "--soak-minutes", "0.02", "--json", str(path)])
    figures = json.loads(path.read_text())["figures"]
    assert {figure["attack"] for figure in figures} == {*names, "soak"}
    counts = [figure for figure in figures if not figure["what"].startswith(("p99", "more", "idle"))]
    assert len(counts) == 11
    assert all(figure["holds"] for figure in counts), counts
    assert "faults afterwards" in capsys.readouterr().out


def test_a_limit_that_is_exceeded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [Figure(attack="a", what="b", value=3, limit=2)]
    monkeypatch.setattr(siege, "besiege", lambda *_: figures)
    assert siege.main([]) == 1
    assert "EXCEEDED" in capsys.readouterr().out
    figures[:] = [Figure(attack="a", what="b", value=2, limit=2)]
    assert siege.main([]) == 0


@pytest.mark.slow
def test_the_siege() -> None:
    """Its own limits, on a machine that does nothing else."""
    assert siege.main(["--soak-minutes", "10"]) == 0
