"""The page allocator: which pages of the KV cache are free, and who holds the others. Knows nothing of their content.

A page is held by sequences (`refs`, one for each that reads or writes it) and by the prefix cache (`kept`, one for
each of its nodes). It is free when nobody holds it, and idle when only the prefix cache does: idle pages can be had
by eviction.
"""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Pages 0 .. count - 1 of `page_size` positions each.

    `take` prefers runs of consecutive pages, which the CPU's attention reads without copying. `free` and `idle` count
    pages; read them, do not set them.
    """

    def __init__(self, count: int, page_size: int) -> None:
        self.count, self.page_size = count, page_size
        self.free, self.idle = count, 0
        self._refs, self._kept = [0] * count, [0] * count
        self._map = bytearray(b"\1") * count  # 1 where free, so that a search for a run is bytearray.find
        self._cursor = 0

    def pages_for(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def refs(self, page: int) -> int:
        return self._refs[page]

    def kept(self, page: int) -> int:
        return self._kept[page]

    def take(self, count: int, *, after: int | None = None, room: int = 0) -> list[int] | None:
        """`count` free pages, referred to once each, or None (and nothing taken) where fewer are free.

        In order of preference: the pages right behind page `after`; a run with `room` more free pages behind it, to
        grow into; a run; any.
        """
        if count > self.free:
            return None
        if not count:
            return []
        start = self._run(count, after, room)
        pages = list(range(start, start + count)) if start >= 0 else self._scattered(count)
        for page in pages:
            self._map[page] = 0
            self._refs[page] = 1
        self.free -= count
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each page; all are held already."""
        for page in pages:
            if not self._refs[page]:
                assert self._kept[page], page
                self.idle -= 1
            self._refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One reference less to each page."""
        for page in pages:
            assert self._refs[page] > 0, page
            self._refs[page] -= 1
            if self._refs[page]:
                continue
            if self._kept[page]:
                self.idle += 1
            else:
                self._give_back(page)

    def keep(self, page: int) -> None:
        """Hold a page, which somebody holds already, for the prefix cache."""
        assert self._refs[page] or self._kept[page], page
        self._kept[page] += 1

    def drop(self, page: int) -> None:
        """Undo one `keep`."""
        assert self._kept[page] > 0, page
        self._kept[page] -= 1
        if not self._kept[page] and not self._refs[page]:
            self.idle -= 1
            self._give_back(page)

    def _give_back(self, page: int) -> None:
        self._map[page] = 1
        self.free += 1

    def _run(self, count: int, after: int | None, room: int) -> int:
        """First page of the best run of free pages, or -1."""
        run = b"\1" * count
        if after is not None and self._map.startswith(run, after + 1):
            return after + 1
        if room:  # each search goes on behind the room that the last one left, else it would start inside
            roomy = run + b"\1" * room
            start = self._map.find(roomy, self._cursor)
            if start < 0:
                start = self._map.find(roomy)
            if start >= 0:
                self._cursor = start + count + room
                return start
        start = self._map.find(run, self._cursor)
        return start if start >= 0 else self._map.find(run)

    def _scattered(self, count: int) -> list[int]:
        pages, page = [], -1
        for _ in range(count):
            page = self._map.find(1, page + 1)
            pages.append(page)
        return pages
