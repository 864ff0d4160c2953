"""Which pages hold keys of a prefix that comes again: a radix tree over pages, one for each namespace.

A node is a page and what stands in it: the identities of a whole page of positions, or of fewer at its start (a
partial node, always a leaf: the end of an image, of a prompt, of an answer). Several nodes may lie in one page, for
slots that are filled are never written again. Whole pages are shared; a partial one is copied by who goes on from it.

A page that a sequence refers to is never evicted, and whoever refers to a node's page refers to those of all nodes
above it: so every idle page can be evicted, leaves first.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from mdinfer.pages import PagePool

_ID_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """The first `positions` of a prompt are in the cache.

    pages   whole pages of them, to be shared
    source  the page that begins with the rest of them, to be copied; None where there is no rest
    """

    positions: int = 0
    pages: tuple[int, ...] = ()
    source: int | None = None

    @property
    def held(self) -> tuple[int, ...]:
        """Pages that must stay as they are until they have been read."""
        return self.pages if self.source is None else (*self.pages, self.source)


class _Node:
    """A root's content is its namespace."""

    __slots__ = ("children", "content", "page", "parent", "partials", "queued", "used")

    def __init__(self, parent: _Node | None, content: bytes, page: int) -> None:
        self.parent, self.content, self.page = parent, content, page
        self.children: dict[bytes, _Node] = {}
        self.partials: dict[int, dict[bytes, _Node]] = {}  # by the number of bytes
        self.used, self.queued = 0, False

    @property
    def leaf(self) -> bool:
        return not self.children and not self.partials


class PrefixCache:
    def __init__(self, pages: PagePool) -> None:
        self._pool = pages
        self._page_bytes = pages.page_size * _ID_BYTES
        self._roots: dict[str, _Node] = {}
        self._clock = 0
        self._pushed = 0
        # Leaves by last use. Entries age: one whose node was used since is put back when it comes up.
        self._leaves: list[tuple[int, int, _Node]] = []

    def match(self, ids: array[int], blocks: Iterable[tuple[int, int]], namespace: str) -> Hit:
        """The longest known prefix that leaves at least one position and ends in no image block of the prompt."""
        root = self._roots.get(namespace)
        if root is None:
            return Hit()
        self._clock += 1
        nodes = self._path(root, ids.tobytes())
        positions = min(sum(len(node.content) for node in nodes) // _ID_BYTES, len(ids) - 1)
        return self._hit([node.page for node in nodes], _outside(positions, blocks))

    def shorter(self, hit: Hit, blocks: Seq[tuple[int, int]]) -> Hit:
        """A hit of whole pages only, within another one."""
        positions, before = len(hit.pages) * self._pool.page_size, -1
        while positions != before:
            before = positions
            positions = _outside(positions, blocks)
            positions -= positions % self._pool.page_size
        return self._hit(list(hit.pages), positions)

    def insert(self, ids: array[int], pages: list[int], positions: int, ends: Iterable[int], namespace: str) -> bool:
        """Remember the first `positions` of a sequence, which are computed and sound, and each prefix in `ends`.

        The caller refers to `pages`. Where the tree has a page of the same content already, the caller's own is
        released and that one put in its place; True if that happened.
        """
        self._clock += 1
        data, size, replaced = ids.tobytes(), self._page_bytes, False
        path = [self._roots.setdefault(namespace, _Node(None, namespace.encode(), -1))]
        for index in range(positions // self._pool.page_size):
            content = data[index * size : (index + 1) * size]
            child = path[-1].children.get(content)
            if child is None:
                child = path[-1].children[content] = self._add(path[-1], content, pages[index])
            elif child.page != pages[index]:
                self._pool.share([child.page])
                self._pool.release([pages[index]])
                pages[index], replaced = child.page, True
            child.used = self._clock
            path.append(child)
        for end in ends:
            whole, rest = divmod(end, self._pool.page_size)
            if rest and end <= positions:
                self._add_partial(path[whole], data[whole * size : end * _ID_BYTES], pages[whole])
        if path[0].leaf:
            del self._roots[namespace]
        return replaced

    def evict(self, count: int) -> int:
        """Forget what was used longest ago until `count` pages are free that were not, or no page is idle."""
        before, pinned = self._pool.free, list[_Node]()
        while self._pool.free - before < count and self._pool.idle:
            used, _, node = heapq.heappop(self._leaves)
            node.queued = False
            if not node.leaf:
                continue
            if self._pool.refs(node.page):
                pinned.append(node)
            elif node.used > used:
                self._queue(node)
            else:
                self._forget(node)
        for node in pinned:  # in use now, so not looked at again before the others are
            node.used = self._clock
            self._queue(node)
        return self._pool.free - before

    def _path(self, node: _Node, data: bytes) -> list[_Node]:
        """Nodes that hold the longest prefix of `data`, marked as used; the last one may be partial."""
        nodes: list[_Node] = []
        size, start = self._page_bytes, 0
        while (child := node.children.get(data[start : start + size])) is not None:
            child.used = self._clock
            nodes.append(child)
            node, start = child, start + size
        for length in sorted(node.partials, reverse=True):
            partial = node.partials[length].get(data[start : start + length])
            if partial is not None:
                partial.used = self._clock
                nodes.append(partial)
                break
        return nodes

    def _hit(self, pages: list[int], positions: int) -> Hit:
        whole, rest = divmod(positions, self._pool.page_size)
        return Hit(positions=positions, pages=tuple(pages[:whole]), source=pages[whole] if rest else None)

    def _add(self, parent: _Node, content: bytes, page: int) -> _Node:
        node = _Node(parent, content, page)
        node.used = self._clock
        self._pool.keep(page)
        self._queue(node)
        return node

    def _add_partial(self, parent: _Node, content: bytes, page: int) -> None:
        known = parent.partials.setdefault(len(content), {})
        if content in known:
            known[content].used = self._clock
        else:
            known[content] = self._add(parent, content, page)

    def _queue(self, node: _Node) -> None:
        if not node.queued:
            node.queued = True
            self._pushed += 1
            heapq.heappush(self._leaves, (node.used, self._pushed, node))

    def _forget(self, node: _Node) -> None:
        parent = node.parent
        assert parent is not None
        if len(node.content) == self._page_bytes:
            del parent.children[node.content]
        else:
            same = parent.partials[len(node.content)]
            del same[node.content]
            if not same:
                del parent.partials[len(node.content)]
        self._pool.drop(node.page)
        if parent.leaf and parent.parent is not None:
            self._queue(parent)
        elif parent.leaf:
            del self._roots[parent.content.decode()]


def _outside(positions: int, blocks: Iterable[tuple[int, int]]) -> int:
    """The same, or the start of the block that it would cut."""
    for start, end in blocks:
        if start < positions < end:
            return start
    return positions
