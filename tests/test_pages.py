"""The page allocator against a model of who holds what."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mdinfer.pages import PagePool


def taken(pool: PagePool, count: int, after: int | None = None, room: int = 0) -> list[int]:
    pages = pool.take(count, after=after, room=room)
    assert pages is not None
    return pages


@pytest.mark.parametrize("count", [1, 7, 64, 400])
def test_100000_random_operations_in_all(count: int) -> None:
    """Nothing is given out twice, nothing is lost, a refusal takes nothing, the counters are right at each step."""
    pool, rng = PagePool(count, 16), random.Random(count)
    refs, kept, held = Counter[int](), Counter[int](), list[list[int]]()
    free = set(range(count))
    for step in range(25_000):
        choice = rng.random()
        if choice < 0.3:
            wanted = rng.randint(0, max(1, count // 3))
            found = pool.take(wanted, after=rng.choice([None, rng.randrange(count)]), room=rng.choice([0, 3]))
            assert (found is None) == (wanted > len(free))
            if found:
                assert found == sorted(set(found)) and set(found) <= free and len(found) == wanted
                held.append(found)
                free -= set(found)
                refs.update(found)
        elif choice < 0.4 and held:
            pages = rng.choice(held)
            pool.share(pages)
            held.append(list(pages))
            refs.update(pages)
        elif choice < 0.7 and held:
            pages = held.pop(rng.randrange(len(held)))
            rng.shuffle(pages)
            pool.release(pages)
            refs.subtract(pages)
            free |= {p for p in pages if not refs[p] and not kept[p]}
        elif choice < 0.85 and len(free) < count:
            page = rng.choice(sorted(set(range(count)) - free))
            pool.keep(page)
            kept[page] += 1
        elif +kept:
            page = rng.choice(sorted(+kept))
            pool.drop(page)
            kept[page] -= 1
            if not refs[page] and not kept[page]:
                free.add(page)
        idle = {p for p in range(count) if kept[p] and not refs[p]} if count < 100 or step % 50 == 0 else None
        assert pool.free == len(free)
        assert idle is None or pool.idle == len(idle)
    assert all((pool.refs(p), pool.kept(p)) == (refs[p], kept[p]) for p in range(count))
    for pages in held:
        pool.release(pages)
    for page in kept.elements():
        pool.drop(page)
    assert (pool.free, pool.idle) == (count, 0)
    assert pool.take(count) == list(range(count))


def test_a_run_of_consecutive_pages_is_preferred() -> None:
    pool = PagePool(10, 16)
    first, second, third = (taken(pool, n) for n in (2, 1, 4))
    assert (first, second, third) == ([0, 1], [2], [3, 4, 5, 6])
    pool.release(first)  # free: 0 1, 7 8 9
    assert pool.take(3) == [7, 8, 9]
    assert pool.take(2) == [0, 1]


def test_scattered_pages_where_no_run_is_long_enough() -> None:
    pool = PagePool(6, 16)
    pages = taken(pool, 6)
    pool.release([pages[i] for i in (0, 2, 4, 5)])
    assert pool.take(3) == [0, 2, 4]
    assert pool.free == 1


def test_growth_goes_on_behind_the_last_page() -> None:
    pool = PagePool(10, 16)
    assert taken(pool, 3, room=2) == [0, 1, 2]
    assert taken(pool, 2, room=2) == [5, 6]  # behind the room of the first
    assert taken(pool, 1, after=2) == [3]
    assert taken(pool, 1, after=6) == [7]
    assert taken(pool, 2, after=3) == [8, 9]  # 4 is free, 5 is not
    assert taken(pool, 1, after=9) == [4]


def test_room_is_given_up_where_there_is_none() -> None:
    pool = PagePool(4, 16)
    assert taken(pool, 2, room=9) == [0, 1]
    assert taken(pool, 2, room=1) == [2, 3]


def test_a_refusal_takes_nothing() -> None:
    pool = PagePool(3, 16)
    assert pool.take(4) is None
    assert pool.free == 3


def test_a_page_is_free_when_neither_kind_of_holder_is_left() -> None:
    pool = PagePool(2, 16)
    pages = taken(pool, 2)
    pool.keep(0)
    assert (pool.free, pool.idle) == (0, 0)
    pool.release(pages)
    assert (pool.free, pool.idle) == (1, 1)
    assert pool.take(2) is None
    pool.share([0])
    assert (pool.free, pool.idle) == (1, 0)
    pool.drop(0)
    assert (pool.free, pool.idle) == (1, 0)
    pool.release([0])
    assert (pool.free, pool.idle) == (2, 0)


@pytest.mark.parametrize(("positions", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (160, 10), (161, 11)])
def test_pages_for(positions: int, pages: int) -> None:
    assert PagePool(1, 16).pages_for(positions) == pages


@pytest.mark.parametrize("page", [0, 1, 2])
@pytest.mark.parametrize("operation", ["release", "drop", "share", "keep"])
def test_a_free_page_can_only_be_taken(operation: str, page: int) -> None:
    pool = PagePool(3, 16)
    pool.release(taken(pool, 3))
    with pytest.raises(AssertionError):
        {
            "release": lambda: pool.release([page]),
            "drop": lambda: pool.drop(page),
            "share": lambda: pool.share([page]),
            "keep": lambda: pool.keep(page),
        }[operation]()


def test_releasing_twice_is_a_fault_also_of_a_kept_page() -> None:
    pool = PagePool(1, 16)
    pool.keep(*taken(pool, 1))
    pool.release([0])
    with pytest.raises(AssertionError):
        pool.release([0])
