"""What `speed` makes of times, given by a timer of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels import catalogue, measure, speed
from tests.benchmarks.kernels.fakes import case

CPU = torch.device("cpu")
CEILINGS = {"bytes_per_s": 1e12, "flops_per_s": 1e15}


def judged(ms: float | None, rivals: dict[str, float | None] | None = None, **fields: Any) -> dict[str, Any]:
    """The record of a case that took `ms`, and its rivals theirs; None is a fault."""
    rivals = rivals or {}
    made = case(rivals={name: lambda x: 2 * x for name in rivals}, **fields)
    times = {who: {"ms": t, "turns": 2} if t else {"fault": "broken"} for who, t in {"kernel": ms, **rivals}.items()}
    return speed.judged(made, CEILINGS, times)


def test_shares_of_the_ceilings() -> None:
    record = judged(2.0, bytes=10**9, flops=10**12)
    assert (record["bytes_per_s"], record["of_copy"]) == pytest.approx((5e11, 0.5))
    assert (record["flops_per_s"], record["of_matmul"]) == pytest.approx((5e14, 0.5))
    assert record["reached"] is None


@pytest.mark.parametrize(("bar", "reached"), [(0.5, True), (0.51, False)])
@pytest.mark.parametrize("of", ["bytes", "flops", "library"])
def test_bars(of: str, bar: float, reached: bool) -> None:
    record = judged(2.0, {"library": 1.0, "other": 0.1}, bytes=10**9, flops=10**12, bar=(of, bar))
    assert record["share"] == pytest.approx(0.5)
    assert record["reached"] is reached


def test_a_bar_without_its_rival_is_open() -> None:
    record = judged(2.0, {"library": None}, bar=("library", 0.9))
    assert (record["reached"], record["failed_rivals"]) == (None, {"library": "broken"})


def test_a_bar_may_name_several_rivals_of_which_the_fastest_counts() -> None:
    times = {"sdpa flash": 2.0, "sdpa cudnn": 1.0, "sdpa efficient": None, "other": 0.1}
    assert judged(2.0, times, bar=("sdpa", 1.0))["share"] == pytest.approx(0.5)
    assert judged(2.0, times, bar=("sdpa flash", 1.0))["share"] == pytest.approx(1.0)


def test_a_kernel_that_fails() -> None:
    record = judged(None, {"library": 1.0}, bytes=10**9, bar=("bytes", 0.5))
    assert (record["ms"], record["share"], record["reached"], record["fault"]) == (None, None, None, "broken")


def test_the_timer_gets_the_kernel_or_the_rival_on_inputs_that_differ() -> None:
    seen: list[Any] = []

    def timer(calls: measure.Calls) -> list[float]:
        seen.append([call() for call in calls])
        return [1.5, 9.0, 1.0]

    made = case(rivals={"triple": lambda x: 3 * x})
    assert speed.time_of(made, "kernel", CPU, timer) == {"ms": 1.5, "repeats": [1.5, 9.0, 1.0], "turns": 2}
    speed.time_of(made, "triple", CPU, timer)
    (a, b), (c, d) = seen
    assert not torch.equal(a, b)
    torch.testing.assert_close((c, d), (1.5 * a, 1.5 * b))


def test_the_copy_moves_as_many_bytes() -> None:
    sizes: list[int] = []

    def timer(calls: measure.Calls) -> list[float]:
        for copied in (call() for call in calls):
            assert isinstance(copied, torch.Tensor)
            sizes.append(len(copied))
        return [1.0]

    speed.time_of(case(bytes=4096), "copy", CPU, timer)
    assert sizes == [2048, 2048]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A rival that fails is told; a kernel that fails is a fault."""
    good = case(bytes=4096, bar=("bytes", 1e9), rivals={"none": lambda x: x.nonsense(), "torch": lambda x: x + x})
    broken_case = case("broken", lambda x: x.nonsense(), bar=("torch", 0.9))
    monkeypatch.setitem(catalogue.FAMILIES, "fake", lambda: [good, broken_case])
    monkeypatch.setattr("benchmarks.kernels.command.FAMILIES", catalogue.FAMILIES)
    path = tmp_path / "speed.json"
    fake = ["--device", "cpu", "--family", "fake", "--json", str(path)]
    assert speed.main([*fake, "--case", "double"]) == 0
    assert speed.main(fake) == 1
    result = json.loads(path.read_text())
    double, broken = result["results"]
    assert double["ms"] > 0 and set(double["rivals"]) == {"torch"} and "none" in double["failed_rivals"]
    assert double["reached"] is False and double["copy_ms"] > 0
    assert "AttributeError" in broken["fault"]
    assert result["ceilings"]["bytes_per_s"] > 0
    printed = capsys.readouterr().out
    assert "MISSED double[4x64]" in printed and "no rival none for double[4x64]" in printed
    assert "% < 100000000000% bytes" in printed
    assert "OPEN broken[4x64]: the bar is 90% of torch" in printed
    assert "2 cases, 0 of 2 bars reached, 1 faults" in printed
    assert speed.main([*fake, "--case", "double", "--no-rivals"]) == 0
    assert json.loads(path.read_text())["results"][0]["rivals"] == {}
