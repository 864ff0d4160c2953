"""The prefix cache against a model that knows what stands in each slot of each page."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import pytest

from mdinfer.pages import PagePool
from mdinfer.prefix_cache import Hit, PrefixCache, _Node

PAGE = 4
Block = tuple[int, int]
Identity = tuple[str, tuple[int, ...]]  # a namespace and all positions up to one


def ids_of(*values: int) -> array[int]:
    return array("q", values)


def nodes_of(cache: PrefixCache) -> list[_Node]:
    found, todo = list[_Node](), list(cache._roots.values())
    while todo:
        node = todo.pop()
        below = [*node.children.values(), *(p for same in node.partials.values() for p in same.values())]
        assert all(child.parent is node for child in below)
        found += below
        todo += below
    return found


class World:
    """Sequences that write into pages, keep them and leave; `truth` is what each slot holds."""

    def __init__(self, seed: int, pages: int) -> None:
        self.rng = random.Random(seed)
        self.pool = PagePool(pages, PAGE)
        self.cache = PrefixCache(self.pool)
        self.truth: dict[tuple[int, int], Identity] = {}
        self.running: list[tuple[str, array[int], list[int]]] = []
        self.reused, self.evicted, self.adopted, self.copied = 0, 0, 0, 0

    def prompt(self) -> tuple[array[int], list[Block]]:
        """Few words and pictures, so that prompts meet; a block's ids are told apart from text."""
        ids, blocks = list[int](), list[Block]()
        for _ in range(self.rng.randint(1, 4)):
            if self.rng.random() < 0.4:
                picture = 100 * self.rng.randint(1, 3)
                blocks.append((len(ids), len(ids) + 6))
                ids += range(picture, picture + 6)
            else:
                ids += [self.rng.randint(0, 2)] * self.rng.randint(1, 6)
        return ids_of(*ids, self.rng.randint(0, 2)), blocks

    def start(self) -> None:
        namespace = self.rng.choice("ab")
        ids, blocks = self.prompt()
        hit = self.cache.match(ids, blocks, namespace)
        if self.rng.random() < 0.1:
            hit = self.cache.shorter(hit, blocks)
            assert hit.source is None
        self.check_hit(hit, ids, blocks, namespace)
        self.pool.share(hit.held)
        need = self.pool.pages_for(len(ids)) - len(hit.pages)
        self.evict(need - self.pool.free)
        own = self.pool.take(need)
        if own is None:
            self.pool.release(hit.held)
            return
        if hit.source is not None:
            for slot in range(hit.positions % PAGE):
                self.truth[own[0], slot] = self.truth[hit.source, slot]
            self.pool.release([hit.source])
            self.copied += 1
        pages = [*hit.pages, *own]
        for p in range(hit.positions, len(ids)):
            self.truth[pages[p // PAGE], p % PAGE] = namespace, tuple(ids[: p + 1])
        self.reused += hit.positions
        self.running.append((namespace, ids, pages))
        ends = [end for _, end in blocks]
        if self.rng.random() < 0.9:
            self.insert(namespace, ids, pages, len(ids), [*ends, len(ids)])

    def insert(self, namespace: str, ids: array[int], pages: list[int], positions: int, ends: list[int]) -> None:
        before = list(pages)
        replaced = self.cache.insert(ids, pages, positions, ends, namespace)
        assert replaced == (before != pages)
        self.adopted += replaced
        for p in range(len(ids)):
            assert self.truth[pages[p // PAGE], p % PAGE] == (namespace, tuple(ids[: p + 1]))

    def extend(self) -> None:
        """A running sequence samples on, and perhaps keeps it."""
        if not self.running:
            return
        namespace, ids, pages = self.rng.choice(self.running)
        if len(ids) > 40:
            return
        for _ in range(self.rng.randint(1, 6)):
            if len(ids) == len(pages) * PAGE:
                self.evict(1 - self.pool.free)
                page = self.pool.take(1)
                if page is None:
                    return
                pages += page
            ids.append(self.rng.randint(0, 2))
            self.truth[pages[-1], (len(ids) - 1) % PAGE] = namespace, tuple(ids)
        if self.rng.random() < 0.5:
            positions = len(ids) - self.rng.randint(0, 1)
            self.insert(namespace, ids, pages, positions, [positions])

    def stop(self) -> None:
        if self.running:
            _, _, pages = self.running.pop(self.rng.randrange(len(self.running)))
            self.pool.release(pages)

    def evict(self, count: int) -> None:
        if count <= 0:
            return
        look = self.rng.random() < 0.1
        pinned = {node for node in nodes_of(self.cache) if self.pool.refs(node.page)} if look else set()
        free, idle = self.pool.free, self.pool.idle
        freed = self.cache.evict(count)
        assert freed == self.pool.free - free == min(count, idle)
        assert not pinned or pinned <= set(nodes_of(self.cache)), "a page in use was evicted"
        self.evicted += freed

    def check_hit(self, hit: Hit, ids: array[int], blocks: list[Block], namespace: str) -> None:
        """Each position of a hit is what the prompt has there, after the same positions."""
        assert hit.positions < len(ids)
        assert len(hit.pages) == hit.positions // PAGE and (hit.source is None) == (hit.positions % PAGE == 0)
        assert not any(start < hit.positions < end for start, end in blocks)
        for p in range(hit.positions):
            assert self.truth[hit.held[p // PAGE], p % PAGE] == (namespace, tuple(ids[: p + 1]))

    def check(self) -> None:
        refs = Counter(page for _, _, pages in self.running for page in pages)
        nodes = nodes_of(self.cache)
        kept = Counter(node.page for node in nodes)
        for page in range(self.pool.count):
            assert (self.pool.refs(page), self.pool.kept(page)) == (refs[page], kept[page])
        assert self.pool.free == self.pool.count - len(refs.keys() | kept.keys())
        assert self.pool.idle == len(kept.keys() - refs.keys())
        assert all(not node.leaf for node in self.cache._roots.values())
        assert all(node.queued for node in nodes if node.leaf)


@pytest.mark.parametrize(("seed", "pages"), [(0, 12), (1, 30), (2, 60), (3, 120)])
def test_100000_random_operations_in_all(seed: int, pages: int) -> None:
    world = World(seed, pages)
    for step in range(25_000):
        choice = world.rng.random()
        if choice < 0.3:
            world.start()
        elif choice < 0.6:
            world.extend()
        elif choice < 0.9 or len(world.running) > 8:
            world.stop()
        elif choice < 0.95:
            world.evict(world.rng.randint(1, 5))
        if step % 20 == 0:
            world.check()
    assert min(world.reused, world.evicted, world.copied, world.adopted) > 50
    while world.running:
        world.stop()
    world.check()
    world.evict(pages)
    assert (world.pool.free, world.pool.idle) == (pages, 0)
    assert not world.cache._roots and world.cache.match(ids_of(0, 1), [], "a") == Hit()


@pytest.mark.parametrize("seed", range(3))
def test_without_eviction_the_longest_prefix_is_found(seed: int) -> None:
    """Of those that were kept: whole pages of any insertion, and the ends it named."""
    world, known = World(seed, 20_000), set[Identity]()
    for _ in range(800):
        ids, blocks = world.prompt()
        namespace = world.rng.choice("ab")
        longest = max((n for n in range(len(ids) + 1) if (namespace, tuple(ids[:n])) in known), default=0)
        expected = min(longest, len(ids) - 1)
        expected = next((start for start, end in blocks if start < expected < end), expected)
        assert world.cache.match(ids, blocks, namespace).positions == expected
        pages = world.pool.take(world.pool.pages_for(len(ids)))
        assert pages is not None
        ends = world.rng.sample(range(1, len(ids) + 1), min(2, len(ids)))
        world.cache.insert(ids, pages, len(ids), ends, namespace)
        known |= {(namespace, tuple(ids[:n])) for n in (*ends, *range(0, len(ids) + 1, PAGE))}


# By example; a page has 4 positions


def filled(pages: int = 20) -> tuple[PagePool, PrefixCache]:
    pool = PagePool(pages, PAGE)
    return pool, PrefixCache(pool)


def kept(pool: PagePool, cache: PrefixCache, ids: array[int], *ends: int, namespace: str = "") -> list[int]:
    """Insert as a sequence that leaves at once."""
    pages = pool.take(pool.pages_for(len(ids)))
    assert pages is not None
    cache.insert(ids, pages, len(ids), ends, namespace)
    pool.release(pages)
    return pages


def test_a_picture_is_reused_to_its_last_position() -> None:
    """730 positions are 22 pages of 32, shared, and 26 positions of another one, copied."""
    pool = PagePool(100, 32)
    cache = PrefixCache(pool)
    picture = range(1000, 1730)
    pages = kept(pool, cache, ids_of(*picture, *range(20)), 730, 750)
    hit = cache.match(ids_of(*picture, *range(50, 60)), [(0, 730)], "")
    assert hit == Hit(positions=730, pages=tuple(pages[:22]), source=pages[22])


def test_the_last_position_is_always_left_to_compute() -> None:
    pool, cache = filled()
    pages = kept(pool, cache, ids_of(1, 2, 3, 4, 5, 6, 7, 8), 8)
    hit = cache.match(ids_of(1, 2, 3, 4, 5, 6, 7, 8), [], "")
    assert hit == Hit(positions=7, pages=(pages[0],), source=pages[1])


def test_an_image_that_ends_a_prompt_is_computed_whole() -> None:
    """Its last position is left, and a block is not cut."""
    pool, cache = filled()
    kept(pool, cache, ids_of(1, 2, 3, 4, 5, 6, 7, 8), 8)
    assert cache.match(ids_of(1, 2, 3, 4, 5, 6, 7, 8), [(5, 8)], "").positions == 5


def test_namespaces_share_nothing() -> None:
    pool, cache = filled()
    ids = ids_of(*range(9))
    kept(pool, cache, ids, 9, namespace="one key")
    assert cache.match(ids, [], "another key") == Hit()
    assert cache.match(ids, [], "one key").positions == 8


def test_what_is_left_of_an_evicted_image_is_no_hit() -> None:
    pool, cache = filled()
    ids = ids_of(1, 2, 3, 4, *range(100, 110), 7)
    kept(pool, cache, ids, 14)
    assert cache.match(ids, [(4, 14)], "").positions == 14
    assert cache.evict(1) == 1  # the page where the image ends
    assert cache.match(ids, [(4, 14)], "").positions == 4
    assert cache.match(ids, [], "").positions == 12  # as if it were text


def test_what_was_used_longest_ago_goes_first() -> None:
    pool, cache = filled()
    old, used, new = (ids_of(*range(n, n + 9)) for n in (100, 200, 300))
    for ids in (old, used, new):
        kept(pool, cache, ids)
    cache.match(used, [], "")
    cache.evict(3)
    assert [cache.match(ids, [], "").positions for ids in (old, new, used)] == [0, 4, 8]
    cache.evict(2)
    assert [cache.match(ids, [], "").positions for ids in (new, used)] == [0, 4]


def test_pages_in_use_are_passed_over_and_stay() -> None:
    pool, cache = filled()
    ids = ids_of(*range(9))
    pages = kept(pool, cache, ids)
    pool.share(pages[:2])
    assert cache.evict(5) == 0
    pool.release(pages[:2])
    assert cache.evict(5) == 2


def test_the_same_prefix_computed_twice_is_held_once() -> None:
    pool, cache = filled()
    ids = ids_of(*range(9))
    first, second = pool.take(3), pool.take(3)
    assert first is not None and second is not None
    assert not cache.insert(ids, first, 9, [9], "")
    assert cache.insert(ids, second, 9, [9], "")
    assert second == [*first[:2], 5]
    assert pool.free == 20 - 4
    pool.release(first)
    pool.release(second)
    assert cache.evict(20) == 3


def test_several_ends_within_one_page() -> None:
    pool, cache = filled()
    [page] = kept(pool, cache, ids_of(1, 2, 3), 1, 2, 3)
    assert pool.kept(page) == 3
    for ids, positions in (((1, 9, 9), 1), ((1, 2, 9), 2), ((1, 2, 3, 9), 3), ((9, 9), 0)):
        assert cache.match(ids_of(*ids), [], "").positions == positions
    assert cache.evict(1) == 1
    assert not cache._roots


def test_positions_that_are_not_sound_are_not_kept() -> None:
    pool, cache = filled()
    pages = pool.take(3)
    assert pages is not None
    cache.insert(ids_of(*range(12)), pages, 6, [6, 7, 11], "")
    assert cache.match(ids_of(*range(12)), [], "").positions == 6
    cache.insert(ids_of(*range(12)), pages, 0, [3], "b")
    assert list(cache._roots) == [""]
