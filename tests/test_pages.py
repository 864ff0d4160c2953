"""The page allocator against a plain set."""

from __future__ import annotations

import random

import pytest

from mdinfer.pages import PagePool


@pytest.mark.parametrize("count", [1, 7, 64])
def test_20000_random_operations(count: int) -> None:
    """Nothing is given out twice, nothing is lost, and a refusal takes nothing."""
    pool, rng = PagePool(count, 16), random.Random(count)
    free, held = set(range(count)), list[list[int]]()
    for _ in range(20_000):
        assert pool.free == len(free)
        if held and rng.random() < 0.5:
            pages = held.pop(rng.randrange(len(held)))
            rng.shuffle(pages)
            pool.give_back(pages)
            free |= set(pages)
            continue
        wanted = rng.randint(0, max(1, count // 3))
        taken = pool.take(wanted)
        if wanted > len(free):
            assert taken is None
            continue
        assert taken is not None
        assert len(set(taken)) == len(taken) == wanted
        assert set(taken) <= free
        assert taken == sorted(taken)
        free -= set(taken)
        held.append(taken)
    for pages in held:
        pool.give_back(pages)
    assert pool.free == count
    assert pool.take(count) == list(range(count))


def test_a_run_of_consecutive_pages_is_preferred() -> None:
    pool = PagePool(10, 16)
    first, second, third = (pool.take(n) for n in (2, 1, 4))
    assert (first, second, third) == ([0, 1], [2], [3, 4, 5, 6])
    assert first is not None
    pool.give_back(first)  # free: 0 1, 7 8 9
    assert pool.take(3) == [7, 8, 9]
    assert pool.take(2) == [0, 1]


def test_scattered_pages_where_no_run_is_long_enough() -> None:
    pool = PagePool(6, 16)
    pages = [pool.take(1) for _ in range(6)]
    for i in (0, 2, 4, 5):
        one = pages[i]
        assert one is not None
        pool.give_back(one)
    taken = pool.take(3)
    assert taken is not None
    assert set(taken) <= {0, 2, 4, 5}
    assert pool.free == 1


def test_a_refusal_takes_nothing() -> None:
    pool = PagePool(3, 16)
    assert pool.take(4) is None
    assert pool.free == 3


@pytest.mark.parametrize(("positions", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (160, 10), (161, 11)])
def test_pages_for(positions: int, pages: int) -> None:
    assert PagePool(1, 16).pages_for(positions) == pages


@pytest.mark.parametrize("page", [0, 3, -1], ids=["twice", "beyond", "negative"])
def test_giving_back_what_was_not_taken_is_a_fault(page: int) -> None:
    with pytest.raises(AssertionError):
        PagePool(3, 16).give_back([page])
