"""Who runs next: order of admission, slots, pages, the prefill budget, removal at any time."""

from __future__ import annotations

import random

import pytest

from mdinfer.decode_table import State
from mdinfer.pages import PagePool
from mdinfer.prompts import PromptBuilder
from mdinfer.scheduler import Scheduler, StepPlan
from mdinfer.sequence import SamplingParams, Sequence

PAGE = 4


def sequence(prompt: int, most: int | None = None) -> Sequence:
    built = PromptBuilder(0, 5).text([20] * (prompt - 1)).build()
    return Sequence(prompt=built, state=State.ANSWER, sampling=SamplingParams(), max_positions=most or prompt + 4)


def scheduler(pages: int = 100, slots: int = 8, budget: int = 1000) -> Scheduler:
    return Scheduler(PagePool(pages, PAGE), max_batch_size=slots, prefill_tokens=budget)


def planned(found: StepPlan | None) -> StepPlan:
    assert found is not None
    return found


def test_nothing_to_run() -> None:
    assert scheduler().plan() is None


def test_a_sequence_prefills_once_and_then_decodes() -> None:
    one, it = scheduler(), sequence(6)
    one.add(it)
    first, second = planned(one.plan()), planned(one.plan())
    assert (first.prefill, first.decode) == ((it,), ())
    assert (second.prefill, second.decode) == ((), (it,))
    assert first.sequences == second.sequences == (it,)
    assert len(it.pages) == 3  # for 6 + 4 positions of 4 a page


def test_newcomers_prefill_beside_those_that_decode() -> None:
    one, old, new = scheduler(), sequence(3), sequence(4)
    one.add(old)
    one.plan()
    one.add(new)
    plan = planned(one.plan())
    assert (plan.prefill, plan.decode, plan.sequences) == ((new,), (old,), (new, old))


def test_admission_is_in_the_order_of_arrival() -> None:
    """A small sequence does not overtake a large one for which there is no room yet."""
    one = scheduler(pages=6)
    large, larger, small = sequence(8, 16), sequence(8, 16), sequence(2, 4)
    for it in (large, larger, small):
        one.add(it)
    assert planned(one.plan()).prefill == (large,)
    assert planned(one.plan()).prefill == ()
    one.remove(large)
    assert planned(one.plan()).prefill == (larger, small)


def test_never_more_than_there_are_slots() -> None:
    one = scheduler(slots=2)
    them = [sequence(2) for _ in range(3)]
    for it in them:
        one.add(it)
    assert planned(one.plan()).prefill == tuple(them[:2])
    assert sorted(it.slot for it in them) == [-1, 0, 1]
    one.remove(them[0])
    assert planned(one.plan()).prefill == (them[2],)
    assert {them[1].slot, them[2].slot} == {0, 1}


def test_a_step_prefills_within_its_budget() -> None:
    one = scheduler(budget=10)
    them = [sequence(n) for n in (4, 6, 1, 3)]
    for it in them:
        one.add(it)
    assert planned(one.plan()).prefill == tuple(them[:2])
    assert planned(one.plan()).prefill == tuple(them[2:])


def test_a_prompt_longer_than_the_budget_runs_alone() -> None:
    one = scheduler(budget=10)
    them = [sequence(n) for n in (3, 50, 2)]
    for it in them:
        one.add(it)
    assert [planned(one.plan()).prefill for _ in range(3)] == [(them[0],), (them[1],), (them[2],)]


def test_removal_while_waiting_and_while_running_gives_all_back() -> None:
    one = scheduler(pages=5, slots=1)
    running, waiting, last = sequence(4, 20), sequence(4, 8), sequence(4, 8)
    for it in (running, waiting, last):
        one.add(it)
    one.plan()
    assert (one.pages.free, running.slot) == (0, 0)
    one.remove(waiting)
    assert (waiting.slot, waiting.pages, list(one.waiting)) == (-1, [], [last])
    one.remove(running)
    assert (one.pages.free, running.slot, running.pages) == (5, -1, [])
    assert planned(one.plan()).prefill == (last,)


def test_a_sequence_that_can_never_fit_is_the_callers_fault() -> None:
    with pytest.raises(AssertionError):
        scheduler(pages=2).add(sequence(2, 9))


@pytest.mark.parametrize("seed", range(4))
def test_random_courses_against_a_model(seed: int) -> None:
    """Pages and slots are conserved and not shared; everything is admitted, in order, and prefilled once."""
    rng = random.Random(seed)
    pages, slots, budget = rng.randint(8, 30), rng.randint(1, 6), rng.randint(4, 40)
    one = scheduler(pages, slots, budget)
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    for _ in range(3000):
        choice = rng.random()
        if choice < 0.35:
            prompt = rng.randint(1, 24)
            it = sequence(prompt, rng.randint(prompt + 1, 32))
            one.add(it)
            waiting.append(it)
        elif choice < 0.6 and waiting + running:
            it = rng.choice(waiting + running)
            one.remove(it)
            (waiting if it in waiting else running).remove(it)
        else:
            plan = one.plan()
            prefill, decode = (plan.prefill, plan.decode) if plan else ((), ())
            assert list(decode) == running
            assert list(prefill) == waiting[: len(prefill)]
            lengths = [len(it.prompt) for it in prefill]
            assert len(lengths) <= 1 or sum(lengths) <= budget
            running += prefill
            del waiting[: len(prefill)]
            if waiting and len(running) < slots and not prefill:  # then it was pages that were short
                assert -(-waiting[0].max_positions // PAGE) > one.pages.free
        held = [page for it in running for page in it.pages]
        assert len(held) == len(set(held)) == pages - one.pages.free
        assert len({it.slot for it in running}) == len(running) <= slots
        assert all(it.slot in range(slots) and len(it.pages) == -(-it.max_positions // PAGE) for it in running)
        assert all(it.slot == -1 and not it.pages for it in waiting)
        assert (list(one.waiting), one.running) == (waiting, running)
    for it in waiting + running:
        one.remove(it)
    assert (one.pages.free, one.plan()) == (pages, None)
