"""What `check` lets pass and what it finds, on operations of plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels import catalogue, check
from tests.benchmarks.kernels.fakes import case

CPU = torch.device("cpu")
INF, NAN = float("inf"), float("nan")


def fault(**fields: Any) -> str:
    found: str = check.check_case(case(**fields), CPU, seed=0)["fault"]
    return found


def test_a_good_kernel() -> None:
    record = check.check_case(case(), CPU, seed=0)
    assert (record["fault"], record["bound"]) == ("", 1e-6)
    assert 0 <= record["error"] <= record["worst"] < 1e-7


def test_too_large_an_error() -> None:
    assert fault(run=lambda x: 2.00001 * x) == "the error is 5.0e-06, the bound 1.0e-06: float32"


def test_one_bad_row_among_many() -> None:
    """A row of 4096 off by a fifth is off by 3e-3 on the whole, which the bound alone would let pass."""

    def run(x: torch.Tensor) -> torch.Tensor:
        out = 2 * x
        out[17] *= 1.2
        return out

    many: dict[str, Any] = {"inputs": lambda device: (torch.randn(4096, 64, device=device),), "bound": 4e-3}
    assert "a row is off by" in fault(run=run, **many)
    assert fault(**many) == ""


def test_what_nobody_wrote() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        out[:-1] = 2 * x[:-1]
        return out

    assert fault(run=run) == "results that are not numbers"


def test_whole_numbers_that_nobody_wrote() -> None:
    twin = {"twin": lambda x: torch.zeros(4, 64, dtype=torch.int32)}
    assert fault(run=lambda x: torch.zeros(4, 64, dtype=torch.int32), **twin) == ""
    assert fault(run=lambda x: torch.empty(4, 64, dtype=torch.int32), **twin).startswith("the error is 1.0e+00")


def test_another_result_each_time() -> None:
    calls = []

    def run(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return 2 * x * (1 + 1e-7 * len(calls))

    assert fault(run=run) == "not the same bits each time"


def test_arguments_written_to_are_whole_again_for_the_next_call() -> None:
    assert fault(run=lambda x: x.mul_(2)) == ""


def test_several_results() -> None:
    two = {"twin": lambda x: (2 * x, (3 * x,))}
    assert fault(run=lambda x: (2 * x, [3 * x]), **two) == ""
    assert fault(run=lambda x: (2 * x, 4 * x), **two).startswith("the error is 3.3e-01")
    with pytest.raises(AssertionError, match="1 results, the twin has 2"):
        fault(run=lambda x: 2 * x, **two)


def test_inputs_are_fresh_by_the_seed() -> None:
    seen: list[torch.Tensor] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return 2 * x

    kept = case(run=run)
    for seed in (1, 2, 1):
        check.check_case(kept, CPU, seed)
    first, second, third = seen[:: check.CALLS]
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("found", "twin", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], (0, 0)),
        ([[3.0, 4.0], [0.0, 0.0]], [[3.0, 4.0], [0.0, 5.0]], (0.5**0.5, 1.0)),
        ([[6.0, 8.0]], [[3.0, 4.0]], (1, 1)),
        ([INF, -INF, 1.0], [INF, -INF, 1.0], (0, 0)),
        ([INF, 1.0], [2.0, 1.0], (INF, INF)),
        ([0.0, 0.0], [0.0, 0.0], (0, 0)),
        ([0.0, 1.0], [0.0, 0.0], (INF, INF)),
        ([], [], (0, 0)),
    ],
)
def test_errors(found: list[float], twin: list[float], expected: tuple[float, float]) -> None:
    assert check.errors(torch.tensor(found), torch.tensor(twin)) == pytest.approx(expected)


def test_errors_of_what_is_no_number() -> None:
    for found, twin in ((NAN, 1.0), (1.0, NAN), (NAN, NAN), (INF, -INF)):
        pair = check.errors(torch.tensor([found, 1.0]), torch.tensor([twin, 1.0]))
        assert all(not value < 1e30 for value in pair), (found, twin)


def test_errors_of_whole_numbers_and_of_e4m3() -> None:
    assert check.errors(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == (0.25, 0.25)
    assert check.errors(torch.tensor([True]), torch.tensor([True])) == (0, 0)
    x = torch.tensor([1.0, 2.0])
    assert check.errors(x.to(torch.float8_e4m3fn), x) == (0, 0)
    with pytest.raises(AssertionError, match="shape"):
        check.errors(x, x[None])


def test_errors_are_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(7, 5, 3), torch.randn(7, 5, 3)
    whole = check.errors(a, b)
    monkeypatch.setattr(check, "_CHUNK", 6)
    assert check.errors(a, b) == pytest.approx(whole)
    assert whole[0] == pytest.approx(((a - b).norm() / b.norm()).item(), rel=1e-5)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = case("wrong", lambda x: 3 * x)
    broken = case("broken", lambda x: x.nonsense())
    monkeypatch.setitem(catalogue.FAMILIES, "fake", lambda: [case(), wrong, broken])
    monkeypatch.setattr("benchmarks.kernels.command.FAMILIES", catalogue.FAMILIES)
    path = tmp_path / "check.json"
    fake = ["--device", "cpu", "--family", "fake", "--json", str(path)]
    assert check.main([*fake, "--case", "double"]) == 0
    assert check.main([*fake, "--case", "nothing of this name"]) == 1
    assert check.main([*fake, "--seed", "5"]) == 1
    result = json.loads(path.read_text())
    assert (result["benchmark"], result["seed"]) == ("check", 5)
    assert [bool(record["fault"]) for record in result["results"]] == [False, True, True]
    assert "3 cases, 2 with faults, seed 5" in capsys.readouterr().out


def test_waits_are_errors_on_a_gpu_after_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    seen: list[str] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append(modes[-1])
        return 2 * x

    made = case(run=run, inputs=lambda device: (torch.randn(4, 64),))
    assert check.check_case(made, torch.device("cuda"), seed=0)["fault"] == ""
    assert seen == ["default", "error", "error"]
    assert modes[-1] == "default"
