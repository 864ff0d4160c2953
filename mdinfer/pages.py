"""The page allocator: which pages of the KV cache are free. Knows nothing of what a page holds."""

from __future__ import annotations

from bisect import bisect_left


class PagePool:
    """Pages 0 .. count - 1 of `page_size` positions each.

    `take` prefers one run of consecutive pages, which the CPU's attention reads without copying.
    """

    def __init__(self, count: int, page_size: int) -> None:
        self.count, self.page_size = count, page_size
        self._free = list(range(count))

    @property
    def free(self) -> int:
        return len(self._free)

    def pages_for(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def take(self, count: int) -> list[int] | None:
        """`count` pages in ascending order, or None (and nothing taken) where fewer are free."""
        if count > len(self._free):
            return None
        start = self._run_of(count)
        taken = self._free[start : start + count]
        del self._free[start : start + count]
        return taken

    def give_back(self, pages: list[int]) -> None:
        """Return pages that `take` gave out; giving one back twice is a fault of the caller's."""
        for page in pages:
            at = bisect_left(self._free, page)
            assert 0 <= page < self.count and self._free[at : at + 1] != [page], page
            self._free.insert(at, page)

    def _run_of(self, count: int) -> int:
        """Index into the free list where `count` consecutive page numbers begin, else 0."""
        start = 0
        for i in range(1, len(self._free) + 1):
            if i - start == count:
                return start
            if i < len(self._free) and self._free[i] != self._free[i - 1] + 1:
                start = i
        return 0
