"""Thousands of random requests on tiny pools: each ends once, with the answer it gets when it runs alone."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from mdinfer.decode_table import State
from mdinfer.kernels import TokenKind
from mdinfer.pictures import PictureStore
from mdinfer.sequence import SampledToken, Sequence
from tests.fake_runner import solitary
from tests.scheduled import PAGE, Loop, picture, sequence

_TEXTS = [[20, 21, 22, 23, 24, 25, 26, 27], [20, 21, 22, 23, 24, 30, 31], [33, 34]]
_STATES = [State.ANSWER, State.ANSWER, State.REASONING, State.DETECT_X, State.POINT_X]


class Asked(NamedTuple):
    parts: list[str | int]
    names: list[str]
    state: State


class Requests:
    """Made of few pictures and texts, so that they meet; some go on from an answer, as the next turn of a chat."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._store = PictureStore(4)
        self._finished: list[Asked] = []
        self.asked: dict[Sequence, Asked] = {}

    def make(self, most: int) -> Sequence:
        """A sequence that takes up to `most` positions."""
        rng = self._rng
        while True:
            parts, names = list[str | int](), list[str]()
            if self._finished and rng.random() < 0.4:
                before = rng.choice(self._finished)
                parts, names = list(before.parts), list(before.names)
            for _ in range(rng.randint(0, 3)):
                kind = rng.random()
                if kind < 0.4:
                    parts.append("image")
                    names.append(rng.choice("abcde"))
                elif kind < 0.5:
                    parts.append(rng.choice(["point", "box"]))
                else:
                    parts += rng.choice(_TEXTS)
            parts.append(rng.randint(20, 22))
            namespace, state = rng.choice(["", "", "other"]), rng.choice(_STATES)
            pictures = [self._store.shared(picture(name, 2 + ord(name) % 3), namespace) for name in names]
            priority, more = rng.choice([0, 0, 0, -1, 1]), rng.choice([1, 4, 20, 40, 40])
            made = sequence(parts, pictures, more=more, state=state, namespace=namespace, priority=priority)
            if made.max_positions <= most:
                self.asked[made] = Asked(parts, names, state)
                return made

    def check(self, one: Sequence, answer: list[SampledToken]) -> None:
        asked = self.asked[one]
        assert answer == solitary(one.prompt, one.pictures, asked.state, one.max_positions), asked
        if all(token.kind == TokenKind.TEXT for token in answer):
            parts = [*asked.parts, *(token.token for token in answer[:-1])]
            self._finished = [*self._finished[-20:], Asked(parts, asked.names, asked.state)]


@pytest.mark.parametrize("overlap", [False, True], ids=["in-turn", "overlap"])
@pytest.mark.parametrize(
    ("cache", "pages", "slots", "budget", "crops"),
    [(True, 24, 6, 40, 5), (True, 60, 12, 9, 3), (True, 120, 32, 200, 100), (False, 24, 6, 25, 4)],
    ids=["scarce", "chunks", "roomy", "no-cache"],
)
def test_2400_random_requests_in_all(
    overlap: bool, cache: bool, pages: int, slots: int, budget: int, crops: int
) -> None:
    rng, requests = random.Random(pages + overlap), Requests(pages + overlap)
    loop = Loop(pages=pages, slots=slots, prefill_tokens=budget, vision_crops=crops, cache=cache, overlap=overlap)
    left, alive, aborted, checked = 300, list[Sequence](), set[Sequence](), set[Sequence]()
    while left or loop.busy or loop.flights:
        while left and len(alive) < 2 * slots and rng.random() < 0.6:
            alive.append(requests.make(min(90, pages * PAGE)))
            loop.add(alive[-1])
            left -= 1
        loop.step()
        loop.check()
        for one in [one for one in alive if one in loop.answers]:
            requests.check(one, loop.answers[one])
            checked.add(one)
            alive.remove(one)
        if alive and rng.random() < 0.08:
            gone = alive.pop(rng.randrange(len(alive)))
            loop.scheduler.remove(gone)
            aborted.add(gone)
            loop.check()
    assert len(requests.asked) == 300
    assert checked | aborted == requests.asked.keys() and not checked & aborted
    assert len(aborted) > 10
    if pages == 24:
        assert loop.scheduler.preemptions > 20
    if cache:
        assert sum(one.cached for one in checked) > 200
    assert all(one.ended and not one.in_flight and not one.pending for one in requests.asked)
    loop.check_idle()
