"""The floors of the published model on an H100, known from a calculation of its own, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import roofline
from benchmarks.chips import CHIPS, Rates
from benchmarks.costs import EXPERTS, Part, Precision, vision_pass
from benchmarks.roofline import Floors
from mdinfer.config import ModelConfig
from tests.golden_data import GOLDEN

HALF = 0.00501  # of the last digit that the known figures have
H100 = CHIPS["H100"].rates


@pytest.fixture(scope="module")
def floors() -> Floors:
    return Floors(ModelConfig(), H100, only_bulk=True)


@pytest.mark.parametrize(
    ("experts", "kv", "known"),
    [
        ("bf16", "bf16", (1.15, 2.86, 6.00, 9.16)),
        ("fp8", "bf16", (0.82, 1.75, 3.64, 6.47)),
        ("fp8", "fp8", (0.79, 1.64, 3.22, 4.79)),
        ("int4", "fp8", (0.63, 1.11, 2.07, 3.49)),
    ],
)
def test_decode(floors: Floors, experts: str, kv: str, known: tuple[float, ...]) -> None:
    for batch, ms in zip((1, 4, 16, 64), known, strict=True):
        assert floors.decode(batch, 800, Precision(experts=experts, kv=kv)) == pytest.approx(ms, abs=HALF)


def known_fp8(floors: Floors, crops: int) -> float:
    """As the known figures have it: patches in fp8 as the tower is, the projection not."""
    plain, fp8 = (
        {part.name: part for part in vision_pass(floors.config.vision, crops, Precision(linears=linears))}
        for linears in ("bf16", "fp8")
    )
    patches = replace(plain["patches"], bulk=plain["patches"].bulk / 2, rate="fp8")
    return floors.ms(tuple((fp8 | {"patches": patches, "projection": plain["projection"]}).values()))


def test_vision(floors: Floors) -> None:
    for crops, bf16, fp8 in ((9, 7.56, 4.67), (2, 1.73, 1.09)):
        assert floors.vision(crops, Precision()) == pytest.approx(bf16, abs=HALF)
        assert known_fp8(floors, crops) == pytest.approx(fp8, abs=HALF)
        # The projection of one picture, 52 GFLOP in 1.4 PFLOP/s instead of 0.8, and patches the other way round.
        assert -0.03 < floors.vision(crops, Precision(linears="fp8")) - fp8 < 0
    assert floors.vision(13, Precision()) == pytest.approx(10.9, abs=0.05)
    assert known_fp8(floors, 13) == pytest.approx(6.7, abs=0.05)


def test_linears_in_fp8(floors: Floors) -> None:
    """Attention and dense layers: 537 M weights, one byte less of each at any batch that waits for them."""
    numbers = 24 * 4 * 2048**2 + 4 * 2 * 2048 * 8192
    for batch in (1, 16):
        ms = [floors.decode(batch, 800, Precision(experts="fp8", linears=linears)) for linears in ("bf16", "fp8")]
        assert ms[0] - ms[1] == pytest.approx(1e3 * numbers / H100.bandwidth, abs=1e-6)
    slow, fast = (floors.prefill(8, 775, Precision(experts="fp8", linears=linears)) for linears in ("bf16", "fp8"))
    flops = 2 * numbers * 8 * 775
    assert H100.fp8 is not None
    assert slow - fast == pytest.approx(1e3 * flops * (1 / H100.bf16 - 1 / H100.fp8), rel=1e-6)


def test_prefill(floors: Floors) -> None:
    precision = Precision(experts="fp8", kv="fp8")
    for requests, cached, ms in ((1, 0, 3.93), (8, 0, 2.30), (1, 730, 3.13), (8, 730, 0.43)):
        found = floors.prefill(requests, 775, precision, cached=cached) / requests
        assert found == pytest.approx(ms, abs=HALF)


def test_what_the_usual_estimate_leaves_out_is_added(floors: Floors) -> None:
    """Scales of fp8 keys and values, 4 bytes for 64, show most: 1/16 of the cache's share; then what int4 keeps beside
    a scale for each group.
    """
    whole = Floors(ModelConfig(), H100)
    for batch, experts, kv in ((1, "bf16", "bf16"), (64, "fp8", "fp8"), (64, "int4", "fp8")):
        precision = Precision(experts=experts, kv=kv)
        less, more = floors.decode(batch, 800, precision), whole.decode(batch, 800, precision)
        cache_ms = batch * 800 * 96 * 1024 / 3e9
        scales = cache_ms / 16 if kv == "fp8" else 0
        if experts == "int4":
            scales += 0.99 * 20 * 64 * 3 * 2048 * 1024 / 128 * (EXPERTS["int4"].scale - 2) / 3e9
        assert less + scales < more < less + scales + 0.025


def test_a_chip_without_fp8_products_multiplies_in_bf16() -> None:
    part = Part(name="x", bulk=1, flops=10, rate="fp8")
    assert Rates(bandwidth=1, bf16=2).seconds(part) == 5
    assert Rates(bandwidth=1, bf16=2, fp8=5).seconds(part) == 2
    assert Rates(bandwidth=0.1, bf16=2, fp8=5).seconds(part) == 10


def test_no_chip_reaches_more_than_its_data_sheet() -> None:
    for chip in CHIPS.values():
        assert chip.sheet.fp8 is None or chip.sheet.fp8 >= 2 * chip.sheet.bf16 * 0.99
        if chip.reached is not None:
            assert 0.7 < chip.reached.bandwidth / chip.sheet.bandwidth < 1
            assert 0.7 < chip.reached.bf16 / chip.sheet.bf16 < 1


def run(tmp_path: Path, *arguments: str) -> Any:
    path = tmp_path / "floors.json"
    roofline.main([*arguments, "--json", str(path)])
    return json.loads(path.read_text())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path, "--bare")
    assert result["decode"][0]["ms"]["1"] == pytest.approx(1.15, abs=HALF)
    assert result["distinct_experts"]["16"] == pytest.approx(56.4, abs=0.05)
    printed = capsys.readouterr().out
    assert "fp8      bf16     fp8        800  0.79  1.64  3.22   4.79" in printed
    assert "fp8      fp8      fp8        800  0.61  1.46  3.04   4.61" in printed
    assert "16: 56.4" in printed


def test_rates_by_hand(tmp_path: Path) -> None:
    """Twice the bandwidth halves what only moves."""
    slow, fast = (run(tmp_path, "--bandwidth", tb, "--bf16", "1e6")["decode"][0]["ms"]["1"] for tb in ("1", "2"))
    assert slow == pytest.approx(2 * fast)


def test_a_checkpoints_own_sizes(tmp_path: Path) -> None:
    folder = GOLDEN / "checkpoints" / "tiny-a"
    by_folder = run(tmp_path, "--checkpoint", str(folder))
    assert by_folder == run(tmp_path, "--checkpoint", str(folder / "config.json"))
    assert by_folder["weight_bytes"]["bf16"] < 10e6


@pytest.mark.parametrize(
    "wrong", [["--bandwidth", "2"], ["--fp8", "900"], ["--bandwidth", "-1", "--bf16", "1"], ["--batch", "0"]]
)
def test_what_makes_no_sense_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        roofline.main(wrong)
    assert "error:" in capsys.readouterr().err
