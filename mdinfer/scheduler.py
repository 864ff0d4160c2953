"""What the next step does. Pure Python: no tensors, no clocks, no threads.

Sequences that decode always run. Beside them a step prefills `prefill_tokens` positions and encodes pictures of
`vision_crops` crops: sequences already begun go on first, then the head of the queue is admitted as soon as a batch
slot and pages for all that it has to prefill are there. Nobody overtakes the head, so nobody is starved. A block of
an image is never cut; one that is larger than the budget goes in a step without other prefill.

Pages for sampled tokens are taken one by one. Where none is free and none can be evicted from the prefix cache, the
running sequence of the last rank is preempted: its pages are released, it goes back to its place in the queue, and
what it had sampled is prefilled again with its prompt.

A plan may be made before the steps of earlier ones were read. So plans count what is on its way as done, and the
device must do steps in the order of their plans; what was read late is told to `commit` in the same order.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Seq
from operator import attrgetter

from mdinfer.identities import Identities
from mdinfer.pages import PagePool
from mdinfer.prefill_step import PrefillStep, StepBudget
from mdinfer.prefix_cache import Hit, PrefixCache
from mdinfer.sequence import SampledToken, Sequence
from mdinfer.step_plan import Chunk, PageCopy, StepPlan
from mdinfer.waiting import Leaders, WaitingQueue

_RANK = attrgetter("rank")


class Scheduler:
    """`follows[state][token]`: the decoding state after a token; the last column is for all higher tokens.

    Without a prefix cache nothing is shared but pictures.
    """

    def __init__(
        self,
        pages: PagePool,
        cache: PrefixCache | None,
        follows: Seq[Seq[int]],
        *,
        max_batch_size: int,
        budget: StepBudget,
    ) -> None:
        self.pages, self.cache = pages, cache
        self.waiting = WaitingQueue()
        self.leaders = Leaders(pages.page_size)
        self.running: list[Sequence] = []  # by rank
        self.preemptions = 0
        self.prefix_queries = self.prefix_hits = 0  # positions of prompts looked up in the cache, and found there
        self._prefilling: dict[Sequence, None] = {}
        self._budget, self._follows = budget, follows
        self._last_token = len(follows[0]) - 1
        self._identities = Identities()
        self._slots = list(range(max_batch_size - 1, -1, -1))
        self._sources: list[int] = []  # of copies in the plan being made; not to be evicted meanwhile

    def add(self, sequence: Sequence) -> None:
        """Its pictures are loaded; it may wait, and run, from now on."""
        assert sequence.length < sequence.max_positions
        assert self.pages.pages_for(sequence.max_positions) <= self.pages.count
        assert len(sequence.pictures) == len(sequence.prompt.blocks)
        if self.cache is not None:
            sequence.ids = self._identities.of_prompt(sequence.prompt, [p.digest for p in sequence.pictures])
        self.waiting.push(sequence)

    def plan(self) -> StepPlan | None:
        """The next step, or None where there is nothing to run."""
        decode = self._decode()
        step = PrefillStep(self._budget)
        if self._go_on(step):
            self._admit(step)
        self.pages.release(self._sources)
        self._sources.clear()
        if not decode and not step.chunks:
            return None
        return StepPlan(prefill=tuple(step.chunks), decode=tuple(decode), pictures=tuple(step.pictures))

    def commit(self, plan: StepPlan, tokens: Seq[SampledToken]) -> list[tuple[Sequence, SampledToken]]:
        """Take in what a step sampled: a token for each chunk that samples, in order.

        Returns those whose sequence has not ended meanwhile. One whose token is not sound stays as it was, and is
        to be removed. A part of a plan may be committed by itself (StepPlan.singly).
        """
        live, found = list[tuple[Sequence, SampledToken]](), iter(tokens)
        for chunks, prefill in ((plan.prefill, True), (plan.decode, False)):
            for sequence, _, end, samples, _ in chunks:
                sequence.in_flight -= 1
                token = next(found) if samples else None
                sequence.pending -= samples
                if sequence.ended:
                    continue
                if token is not None:
                    live.append((sequence, token))
                    if token.sound:
                        self._append(sequence, token)
                        if sequence.slot >= 0:
                            sequence.computed = end
                            if prefill:
                                self._prefilled(sequence)
                if sequence.slot < 0 and not sequence.in_flight:
                    self.waiting.push(sequence)
        assert next(found, None) is None
        return live

    def finish(self, sequence: Sequence) -> None:
        """It has its answer, which stays in the cache for whoever goes on from there."""
        if sequence.slot >= 0:
            self._keep(sequence)
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its pages and slot are free at once."""
        assert not sequence.ended
        sequence.ended = True
        if sequence.slot >= 0:
            self._stop(sequence)
        elif not sequence.in_flight and not self.waiting.discard(sequence):
            assert self.leaders.discard(sequence)

    # Running sequences

    def _append(self, sequence: Sequence, token: SampledToken) -> None:
        number = token.token
        sequence.sampled.append(token)
        sequence.state = self._follows[sequence.state][min(number, self._last_token)]
        if self.cache is not None:
            sequence.ids.append(self._identities.of_token(token))

    def _decode(self) -> list[Chunk]:
        """A row for each sequence whose prompt is planned, as long as it may go on."""
        rows, size, prefilling = list[Chunk](), self.pages.page_size, self._prefilling
        for sequence in tuple(self.running):
            start = sequence.planned
            if sequence in prefilling or sequence.slot < 0 or start + 1 >= sequence.max_positions:
                continue
            if start >= len(sequence.pages) * size and not self._grow(sequence):
                continue
            rows.append(Chunk(sequence, start, start + 1, True))
            sequence.planned = start + 1
            sequence.pending += 1
            sequence.in_flight += 1
        return rows

    def _grow(self, sequence: Sequence) -> bool:
        """Take one more page, at the cost of sequences of a later rank; False if it was itself preempted."""
        while (pages := self._take(1, after=sequence.pages[-1])) is None:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages += pages
        return True

    def _prefilled(self, sequence: Sequence) -> None:
        """Its prompt is computed: others can go on from there."""
        self._keep(sequence)
        for follower in self.leaders.finish(sequence):
            self.waiting.push(follower)

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self._keep(sequence)
        self._stop(sequence)
        sequence.planned = sequence.computed = 0
        if not sequence.in_flight:  # else once it has been read
            self.waiting.push(sequence)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._prefilling.pop(sequence, None)
        for follower in self.leaders.finish(sequence):
            self.waiting.push(follower)
        self.pages.release(sequence.pages)
        self._slots.append(sequence.slot)
        sequence.pages, sequence.slot = [], -1

    # Prefill

    def _go_on(self, step: PrefillStep) -> bool:
        """Plan the next chunks of sequences already begun; False if one of them needs another step."""
        return all(self._prefill(step, sequence) for sequence in sorted(self._prefilling, key=_RANK))

    def _prefill(self, step: PrefillStep, sequence: Sequence, copy: PageCopy | None = None) -> bool:
        """Plan what the step can take of a sequence; True if that is all of it."""
        complete = step.add(sequence, copy)
        if complete:
            del self._prefilling[sequence]
        return complete

    def _admit(self, step: PrefillStep) -> None:
        while self._slots and (head := self.waiting.head) is not None:
            hit = Hit()
            if self.cache is not None:
                hit = self.cache.match(head.ids, head.prompt.blocks, head.namespace)
                leader = self.leaders.leader_for(head, hit.positions)
                if leader is not None:
                    self.leaders.follow(self.waiting.pop(), leader)
                    continue
            if step.reach(head, hit.positions) == hit.positions:
                return
            fitting = self._fit(head, hit)
            if fitting is None:
                return
            copy = self._start(self.waiting.pop(), fitting)
            if not self._prefill(step, head, copy):
                return

    def _fit(self, sequence: Sequence, hit: Hit) -> Hit | None:
        """The hit that leaves enough pages for the rest, its pages referred to; None if pages are too few."""
        need, size = self.pages.pages_for(sequence.length), self.pages.page_size
        hits = [hit]
        if hit.source is not None and not self.running and self.cache is not None:
            # Reading the source takes a page more than the sequence needs, and nobody is left to release one.
            hits.append(self.cache.shorter(hit, sequence.prompt.blocks))
        # One page is left to each that will need more than it has, so that nobody is preempted at once.
        left = sum(len(other.pages) * size < other.max_positions for other in self.running)
        for fitting in hits:
            self.pages.share(fitting.held)
            if self.pages.free + self.pages.idle >= need - len(fitting.pages) + left:
                return fitting
            self.pages.release(fitting.held)
        return None

    def _start(self, sequence: Sequence, hit: Hit) -> PageCopy | None:
        """Give a sequence its slot and its pages; returns the copy that its hit asks for."""
        need, size = self.pages.pages_for(sequence.length), self.pages.page_size
        room = self.pages.pages_for(sequence.max_positions) - need
        own = self._take(need - len(hit.pages), after=hit.pages[-1] if hit.pages else None, room=room)
        assert own is not None
        sequence.pages, sequence.slot = [*hit.pages, *own], self._slots.pop()
        sequence.page_changes += 1
        sequence.planned = hit.positions
        if not sequence.started:
            sequence.started, sequence.cached = True, hit.positions
            self.prefix_queries += len(sequence.prompt) if self.cache is not None else 0
            self.prefix_hits += hit.positions
        insort(self.running, sequence, key=_RANK)
        self._prefilling[sequence] = None
        if self.cache is not None and sequence.length >= hit.positions + size:
            self.leaders.lead(sequence)
        if hit.source is None:
            return None
        self._sources.append(hit.source)
        return PageCopy(hit.source, own[0])

    def _take(self, count: int, *, after: int | None, room: int = 0) -> list[int] | None:
        """Pages that are free, or can be made so by eviction."""
        if count > self.pages.free and self.cache is not None and count <= self.pages.free + self.pages.idle:
            self.cache.evict(count - self.pages.free)
        return self.pages.take(count, after=after, room=room)

    # The prefix cache

    def _keep(self, sequence: Sequence) -> None:
        """Remember what is computed of a sequence."""
        if self.cache is None or not sequence.computed:
            return
        ends = [*(end for _, end in sequence.prompt.blocks), sequence.computed]
        if self.cache.insert(sequence.ids, sequence.pages, sequence.computed, ends, sequence.namespace):
            sequence.page_changes += 1
