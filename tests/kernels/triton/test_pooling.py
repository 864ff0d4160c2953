"""The global crop beside the pooled map, against bins taken cell by cell in float64.

Tolerance: a bin averages at most 30 numbers in float32, 30 * 2^-24 = 2e-6 of the RMS at the worst; one store.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels._triton import pooling
from mdinfer.kernels._triton.launch import Config, recorded
from tests.kernels import vision_twin
from tests.kernels.compare import randn, rms_ratio, store_error, to_array

TILINGS = [(1, 1), (1, 2), (2, 1), (2, 4), (3, 4), (4, 3), (1, 12), (12, 1)]


@pytest.fixture(autouse=True)
def several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter too, with tails in both directions."""
    monkeypatch.setattr(pooling, "INTERPRETER", Config(blocks={"POSITIONS": 32, "COLUMNS": 64}))


def check(tiling: tuple[int, int], G: int, C: int, margin: int, dtype: torch.dtype, device: torch.device) -> None:
    features = randn(1 + tiling[0] * tiling[1], G * G, C).to(device, dtype)
    found = features.new_empty(G * G, 2 * C)
    pooling.joined_map(features, tiling, margin, found)
    want = vision_twin.joined_map(to_array(features), tiling, G, margin)
    assert torch.equal(found[:, :C], features[0])
    assert rms_ratio(found[:, C:], want[:, C:]) < 2e-6 + store_error(dtype)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(("G", "C", "margin"), [(9, 144, 2), (5, 3, 0), (8, 1, 3)], ids=["9-2", "5-0", "8-3"])
def test_tilings(tiling: tuple[int, int], G: int, C: int, margin: int, device: torch.device) -> None:
    check(tiling, G, C, margin, torch.float32, device)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_the_models_grid(tiling: tuple[int, int], device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "INTERPRETER", Config(blocks={"POSITIONS": 512, "COLUMNS": 64}))
    check(tiling, 27, 5, 4, torch.float32, device)


@pytest.mark.parametrize("G", [1, 2, 3])
def test_small_grids(G: int, device: torch.device) -> None:
    check((2, 3), G, 130, (G - 1) // 2, torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    check((2, 3), 5, 40, 1, dtype, device)


def test_pictures_write_their_part_of_a_buffer(device: torch.device) -> None:
    features = randn(7, 16, 24).to(device)
    out = torch.zeros(3, 16, 48, device=device)
    pooling.joined_map(features, (2, 3), 1, out[1])
    want = vision_twin.joined_map(to_array(features), (2, 3), 4, 1)
    assert rms_ratio(out[1], want) < 2e-6 and not out[0].any() and not out[2].any()


def test_nan_stays_in_the_bins_that_hold_it(device: torch.device) -> None:
    features, out = randn(7, 16, 24).to(device), torch.empty(16, 48, device=device)
    features[4, 5, 3] = float("nan")
    pooling.joined_map(features, (2, 3), 1, out)
    want = vision_twin.joined_map(to_array(features), (2, 3), 4, 1)
    assert torch.equal(out.isnan().cpu(), torch.from_numpy(want).isnan()) and out.isnan().any()


def test_one_compilation_for_all_tilings(device: torch.device) -> None:
    with recorded() as launches:
        for tiling in TILINGS:
            check(tiling, 3, 8, 1, torch.float32, device)
    assert len(launches) == len(TILINGS) and len({repr(launch.constants) for launch in launches}) == 1
