"""Sequences that do not run yet: the queue, and those that wait for another one to prefill what they share with it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from mdinfer.sequence import Sequence


class WaitingQueue:
    """By rank; the head is cheap to take, and late ranks are cheap to add."""

    def __init__(self) -> None:
        self._ranks: list[tuple[int, int]] = []  # negated, so ascending: the head is the last
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """From the head."""
        return reversed(self._sequences)

    @property
    def head(self) -> Sequence | None:
        return self._sequences[-1] if self._sequences else None

    def push(self, sequence: Sequence) -> None:
        at = bisect_left(self._ranks, _key(sequence))
        self._ranks.insert(at, _key(sequence))
        self._sequences.insert(at, sequence)

    def pop(self) -> Sequence:
        self._ranks.pop()
        return self._sequences.pop()

    def discard(self, sequence: Sequence) -> bool:
        """Take one out; False if it is not in."""
        at = bisect_left(self._ranks, _key(sequence))
        if self._ranks[at : at + 1] != [_key(sequence)]:
            return False
        del self._ranks[at], self._sequences[at]
        return True


class Leaders:
    """Prefills under way, found by namespace and first page, and who waits for each.

    Worth waiting for is a page of positions or more; a leader's positions are in the prefix cache once it is done.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._leading: dict[tuple[str, bytes], list[Sequence]] = {}
        self._followers: dict[Sequence, dict[Sequence, None]] = {}
        self._leader_of: dict[Sequence, Sequence] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._leader_of)

    def lead(self, sequence: Sequence) -> None:
        """Its prefill begins."""
        self._leading.setdefault(self._key(sequence), []).append(sequence)
        self._followers[sequence] = {}

    def leader_for(self, sequence: Sequence, known: int) -> Sequence | None:
        """One whose prefill will spare `sequence` more than the `known` positions it has, if there is one."""
        for leader in self._leading.get(self._key(sequence), ()):
            if min(_common(leader, sequence), sequence.length - 1) >= known + self._page_size:
                return leader
        return None

    def follow(self, sequence: Sequence, leader: Sequence) -> None:
        self._followers[leader][sequence] = None
        self._leader_of[sequence] = leader

    def finish(self, sequence: Sequence) -> list[Sequence]:
        """Its prefill is done, or off; returns who waited. Does nothing for one that does not lead."""
        if sequence not in self._followers:
            return []
        key = self._key(sequence)
        self._leading[key].remove(sequence)
        if not self._leading[key]:
            del self._leading[key]
        followers = list(self._followers.pop(sequence))
        for follower in followers:
            del self._leader_of[follower]
        return followers

    def discard(self, sequence: Sequence) -> bool:
        """Take out one that waits; False if it does not."""
        leader = self._leader_of.pop(sequence, None)
        if leader is None:
            return False
        del self._followers[leader][sequence]
        return True

    def _key(self, sequence: Sequence) -> tuple[str, bytes]:
        return sequence.namespace, sequence.ids[: self._page_size].tobytes()


def _key(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, -sequence.arrival


def _common(a: Sequence, b: Sequence) -> int:
    """How many first positions are the same."""
    count = min(len(a.ids), len(b.ids))
    same = np.frombuffer(a.ids, dtype=np.int64, count=count) == np.frombuffer(b.ids, dtype=np.int64, count=count)
    return count if same.all() else int(same.argmin())
