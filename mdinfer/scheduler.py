"""Which sequences run in the next step. Pure Python: no tensors, no clocks, no threads.

Sequences are admitted in the order they came, as soon as a batch slot and the pages for their longest possible
course are free, so that a running sequence never lacks a page. A step prefills new sequences, within a budget of
positions, and decodes all others by one token.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mdinfer.pages import PagePool
from mdinfer.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Rows of the step: the prefilling sequences' prompts whole, then one row for each decoding sequence."""

    prefill: tuple[Sequence, ...]
    decode: tuple[Sequence, ...]

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        return self.prefill + self.decode


class Scheduler:
    def __init__(self, pages: PagePool, *, max_batch_size: int, prefill_tokens: int) -> None:
        self.pages = pages
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._prefill_tokens = prefill_tokens
        self._slots = list(range(max_batch_size - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        assert self.pages.pages_for(sequence.max_positions) <= self.pages.count
        self.waiting.append(sequence)

    def plan(self) -> StepPlan | None:
        """The next step, or None where there is nothing to run."""
        decode = tuple(self.running)
        prefill = tuple(self._admit())
        if not prefill and not decode:
            return None
        return StepPlan(prefill=prefill, decode=decode)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, whether it waits or runs; its pages and slot are free at once."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.pages.give_back(sequence.pages)
        self._slots.append(sequence.slot)
        sequence.pages, sequence.slot = [], -1

    def _admit(self) -> list[Sequence]:
        admitted: list[Sequence] = []
        budget = self._prefill_tokens
        while self.waiting and self._slots:
            sequence = self.waiting[0]
            if admitted and len(sequence.prompt) > budget:
                break
            pages = self.pages.take(self.pages.pages_for(sequence.max_positions))
            if pages is None:
                break
            self.waiting.popleft()
            sequence.pages, sequence.slot = pages, self._slots.pop()
            budget -= len(sequence.prompt)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted
