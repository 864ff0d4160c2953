"""The counter-based random numbers, against Philox in plain integers and its published vectors."""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import uniform
from tests.kernels import philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_twin_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    """The vectors for philox4x32-10 that are published with Random123 (kat_vectors)."""
    assert philox.philox(counter, key) == words


def test_the_first_published_vector() -> None:
    assert uniform(torch.tensor([0]), torch.tensor([0])).item() == (0x6627E8D5 >> 8) / 2**24


SEEDS = [0, 1, 2, 42, ONES, 1 << 32, (1 << 63) - 1, -(1 << 63), -1, -2, 0x123456789ABCDEF]
STEPS = [0, 1, 2, 767, ONES, 1 << 32, (1 << 40) + 3]


def test_against_the_twin() -> None:
    pairs = [(seed, step) for seed in SEEDS for step in STEPS]
    found = uniform(torch.tensor([s for s, _ in pairs]), torch.tensor([t for _, t in pairs]))
    assert found.dtype == torch.float32
    assert found.tolist() == [philox.uniform(seed, step) for seed, step in pairs]


def test_a_number_depends_on_its_own_row_alone() -> None:
    seeds, steps = torch.tensor(SEEDS), torch.arange(len(SEEDS))
    together = uniform(seeds, steps)
    assert [uniform(seeds[i : i + 1], steps[i : i + 1]).item() for i in range(len(SEEDS))] == together.tolist()


@pytest.mark.parametrize("along", ["steps", "seeds"])
def test_numbers_are_spread_evenly(along: str) -> None:
    """Chi-square over 64 cells, 63 degrees of freedom: 130 is passed by chance once in 10^6 (the seed is fixed)."""
    count = 64_000
    still, moving = torch.full((count,), 12345), torch.arange(count)
    numbers = uniform(still, moving) if along == "steps" else uniform(moving, still)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    cells = torch.histc(numbers, 64, 0, 1)
    assert float(((cells - count / 64) ** 2 / (count / 64)).sum()) < 130
