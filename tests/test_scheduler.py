"""Who runs next, by example: order, slots, pages, budgets, chunks, preemption, what is shared, removal at any time."""

from __future__ import annotations

import pytest

from mdinfer.sequence import SampledToken, Sequence
from mdinfer.step_plan import StepPlan
from tests.fake_runner import solitary
from tests.scheduled import PAGE, Loop, picture, sequence, text

Row = tuple[Sequence, int, int]


def prefill(plan: StepPlan | None) -> list[Row]:
    assert plan is not None
    return [(chunk.sequence, chunk.start, chunk.end) for chunk in plan.prefill]


def decode(plan: StepPlan | None) -> list[Row]:
    assert plan is not None
    return [(chunk.sequence, chunk.start, chunk.end) for chunk in plan.decode]


def test_nothing_to_run() -> None:
    assert Loop().scheduler.plan() is None


def test_a_sequence_prefills_once_and_then_decodes() -> None:
    loop, one = Loop(), text(6)
    loop.add(one)
    plans = [loop.step() for _ in range(3)]
    assert [(prefill(p), decode(p)) for p in plans] == [
        ([(one, 0, 6)], []),
        ([], [(one, 6, 7)]),
        ([], [(one, 7, 8)]),
    ]
    assert (one.length, one.planned, one.computed, one.pending, one.in_flight) == (9, 8, 8, 0, 0)
    assert len(one.pages) == 2  # pages come as they are needed
    assert one.pages == [0, 1]


def test_pages_are_taken_one_by_one_and_lie_in_a_row() -> None:
    loop = Loop()
    first, second = text(5, more=20), text(5, first=40, more=20)
    loop.add(first, second)
    for _ in range(12):
        loop.step()
    assert (len(first.pages), len(second.pages)) == (4, 4)
    for one in (first, second):
        assert one.pages == list(range(one.pages[0], one.pages[0] + 4))


def test_newcomers_prefill_beside_those_that_decode() -> None:
    loop, old, new = Loop(), text(3), text(4, first=30)
    loop.add(old)
    loop.step()
    loop.add(new)
    plan = loop.step()
    assert (prefill(plan), decode(plan)) == ([(new, 0, 4)], [(old, 3, 4)])
    assert plan is not None and [c.sequence for c in plan.chunks] == [new, old]


def test_admission_is_in_the_order_of_arrival() -> None:
    """A small sequence does not overtake a large one for which there is no room yet."""
    loop = Loop(pages=6, cache=False)
    large, larger, small = text(16, more=4), text(12, first=30), text(3, first=40)
    loop.add(large, larger, small)
    assert prefill(loop.step()) == [(large, 0, 16)]
    assert prefill(loop.step()) == []
    loop.scheduler.remove(large)
    assert [row[0] for row in prefill(loop.step())] == [larger, small]


def test_priority_comes_before_arrival() -> None:
    loop = Loop(slots=1)
    late, usual, urgent = text(3, priority=1), text(4, first=30), text(5, first=40, priority=-1)
    loop.run(late, usual, urgent)
    assert list(loop.answers) == [urgent, usual, late]


def test_one_whose_pictures_took_long_keeps_its_place() -> None:
    loop = Loop(slots=1)
    asked_first, asked_later = text(3), text(3, first=30)
    loop.add(asked_later, asked_first)
    assert [row[0] for row in prefill(loop.step())] == [asked_first]


def test_a_stream_of_short_ones_does_not_starve_a_long_one() -> None:
    """The long one needs nearly all pages; newcomers wait behind it, so they come free."""
    loop = Loop(pages=12, slots=4, cache=False)
    first = [text(5, first=30 + i, more=6) for i in range(3)]
    long = text(40, more=4)
    loop.add(*first, long)
    for i in range(12):
        loop.add(text(5, first=20 + i, more=6))
        plan = loop.step()
        assert plan is not None
        if long in [chunk.sequence for chunk in plan.prefill]:
            break
    assert long.slot >= 0
    assert set(loop.answers) == set(first)


def test_never_more_than_there_are_slots() -> None:
    loop = Loop(slots=2)
    them = [text(3, first=20 + i) for i in range(3)]
    loop.add(*them)
    assert [row[0] for row in prefill(loop.step())] == them[:2]
    assert sorted(one.slot for one in them) == [-1, 0, 1]
    loop.scheduler.remove(them[0])
    assert [row[0] for row in prefill(loop.step())] == [them[2]]
    assert {them[1].slot, them[2].slot} == {0, 1}


def test_a_page_is_left_to_each_that_will_need_one() -> None:
    loop = Loop(pages=5, cache=False)
    running, new = text(6, more=8), text(12, first=40, more=4)
    loop.add(running, new)
    assert [row[0] for row in prefill(loop.step())] == [running]
    assert (loop.pool.free, new.slot) == (3, -1)  # three pages would do for now
    loop.scheduler.remove(running)
    assert [row[0] for row in prefill(loop.step())] == [new]
    loop = Loop(pages=5, cache=False)
    running, new = text(6, more=2), text(12, first=40, more=4)
    loop.add(running, new)
    assert [row[0] for row in prefill(loop.step())] == [running, new]


# Budgets and chunks


def test_a_step_prefills_within_its_budget() -> None:
    loop = Loop(prefill_tokens=10, cache=False)
    them = [text(n) for n in (4, 6, 1, 3)]
    loop.add(*them)
    assert [row[0] for row in prefill(loop.step())] == them[:2]
    assert [row[0] for row in prefill(loop.step())] == them[2:]


def test_text_is_cut_where_the_budget_ends_and_goes_on_first() -> None:
    loop = Loop(prefill_tokens=10, cache=False)
    one, long, after = text(4), text(23), text(3)
    loop.add(one, long, after)
    assert prefill(loop.step()) == [(one, 0, 4), (long, 0, 6)]
    assert prefill(loop.step()) == [(long, 6, 16)]
    plan = loop.step()
    assert prefill(plan) == [(long, 16, 23), (after, 0, 3)]
    assert plan is not None and [chunk.samples for chunk in plan.prefill] == [True, True]
    assert (long.length, after.length) == (24, 4)


def test_a_block_is_not_cut_but_the_text_before_it_is() -> None:
    loop = Loop(prefill_tokens=10, cache=False)
    one = sequence([20] * 7 + ["image"] + [21] * 3, [picture("a")])
    loop.add(one)
    assert [prefill(loop.step()) for _ in range(2)] == [[(one, 0, 8)], [(one, 8, 17)]]
    assert one.length == 18


def test_a_block_larger_than_the_budget_goes_without_other_prefill() -> None:
    loop = Loop(prefill_tokens=4, cache=False)
    small, image, after = text(2), sequence(["image", 20, 21], [picture("a")]), text(2)
    loop.add(small, image, after)
    assert prefill(loop.step()) == [(small, 0, 2)]
    assert prefill(loop.step()) == [(image, 0, 7)]
    assert prefill(loop.step()) == [(image, 7, 9), (after, 0, 2)]


def test_a_step_encodes_pictures_within_its_budget_and_at_least_one() -> None:
    loop = Loop(vision_crops=5, cache=False)
    them = [sequence(["image", 20], [picture(name, crops)]) for name, crops in (("a", 2), ("b", 3), ("c", 9), ("d", 2))]
    loop.add(*them)
    found = []
    for _ in range(3):
        plan = loop.step()
        assert plan is not None
        found.append(([c.sequence for c in plan.prefill], [p.digest for p in plan.pictures]))
    assert [them.index(one) for rows, _ in found for one in rows] == [0, 1, 2, 3]
    assert [len(rows) for rows, _ in found] == [2, 1, 1]
    assert [len(pictures) for _, pictures in found] == [2, 1, 1]


def test_a_prompt_is_cut_before_a_picture_that_must_wait() -> None:
    loop = Loop(vision_crops=3, cache=False)
    one = sequence(["image", 20, "image", 21], [picture("a"), picture("b")])
    loop.add(one)
    assert [prefill(loop.step()) for _ in range(2)] == [[(one, 0, 8)], [(one, 8, 15)]]


def test_one_picture_in_several_sequences_is_encoded_once() -> None:
    loop, shared = Loop(cache=False), picture("a")
    them = [sequence(["image", 20 + i], [shared]) for i in range(3)]
    them.append(sequence([20, "image", "image", 21], [shared, shared]))
    loop.add(*them)
    plan = loop.step()
    assert plan is not None and len(plan.prefill) == 4
    assert (plan.pictures, loop.runner.encoded) == ((shared,), 1)


# Preemption


def test_the_last_rank_gives_way_and_resumes_with_the_same_answer() -> None:
    loop = Loop(pages=8, cache=False)
    first, second = text(9, more=20), text(10, first=40, more=20)
    expected = [solitary(one.prompt, [], one.state, one.max_positions) for one in (first, second)]
    assert min(map(len, expected)) > 12  # so that both cannot stay
    loop.run(first, second)
    assert loop.scheduler.preemptions > 0
    assert [loop.answers[one] for one in (first, second)] == expected
    loop.check_idle()


def test_a_preempted_sequence_goes_before_those_that_came_after_it() -> None:
    loop = Loop(pages=7, cache=False)
    first, second, third = text(9, more=18), text(9, first=40, more=18), text(9, first=44, more=4)
    loop.add(first, second)
    while not loop.scheduler.preemptions:
        loop.step()
    assert second.slot < 0 and second.sampled
    loop.add(third)
    assert list(loop.scheduler.waiting) == [second, third]


def test_a_later_arrival_of_higher_priority_is_not_the_victim() -> None:
    loop = Loop(pages=8, cache=False)
    usual, urgent = text(9, more=20), text(10, first=40, more=20, priority=-1)
    loop.add(usual, urgent)
    while not loop.scheduler.preemptions:
        loop.step()
    assert (usual.slot, urgent.slot >= 0) == (-1, True)


def test_a_preempted_sequence_waits_until_its_steps_are_read() -> None:
    loop = Loop(pages=8, overlap=True, cache=False)
    first, second = text(9, more=20), text(10, first=40, more=20)
    loop.add(first, second)
    while not loop.scheduler.preemptions:
        plan = loop.scheduler.plan()
        assert plan is not None
        loop.flights.append((plan, loop.runner.launch(plan)))
        if not loop.scheduler.preemptions:
            while len(loop.flights) > 1:
                loop.read()
    assert (second.slot, second.in_flight, second.pending) == (-1, 1, 1)
    assert len(loop.scheduler.waiting) == 0
    known = len(second.sampled)
    loop.read()
    assert (second.in_flight, len(second.sampled)) == (0, known + 1)
    assert list(loop.scheduler.waiting) == [second]
    loop.run()
    assert loop.answers[second] == solitary(second.prompt, [], 0, second.max_positions)


def test_a_sequence_at_its_limit_is_not_run_again_before_it_is_read() -> None:
    loop = Loop(overlap=True)
    one = text(5, more=2)
    loop.add(one)
    assert (loop.step() is not None, loop.step() is not None) == (True, True)
    assert loop.scheduler.plan() is None
    assert (one.pending, one.length) == (1, 6)


# What is shared


def test_a_second_question_about_a_picture_starts_behind_it() -> None:
    loop = Loop()
    first, second = (sequence(["image", token, 20], [picture("a")]) for token in (21, 22))
    loop.run(first)
    loop.add(second)
    plan = loop.step()
    assert prefill(plan) == [(second, 7, 9)]
    assert plan is not None and not plan.pictures and len(plan.copies) == 1
    assert (first.cached, second.cached) == (0, 7)
    loop.run()
    assert loop.answers[second] == solitary(second.prompt, second.pictures, 0, second.max_positions)


def test_the_next_turn_starts_behind_the_answer() -> None:
    loop, asked = Loop(), [20, 21, 22]
    first = sequence(asked, more=9)
    loop.run(first)
    answer = [token.token for token in loop.answers[first]]
    second = sequence([*asked, *answer, 23])
    loop.run(second)
    assert second.cached == first.computed == 4 + len(answer) - 1


def test_equal_prompts_in_flight_are_prefilled_once() -> None:
    loop = Loop()
    them = [text(11) for _ in range(4)]
    loop.add(*them)
    assert prefill(loop.step()) == [(them[0], 0, 11)]
    assert prefill(loop.step()) == [(one, 10, 11) for one in them[1:]]
    assert len({tuple(one.pages[:2]) for one in them}) == 1  # two whole pages, and a third of each one's own
    assert len({one.pages[2] for one in them}) == 4


def test_one_who_waits_for_another_holds_up_nobody() -> None:
    loop = Loop()
    first, same, other = text(11), text(11), text(9, first=40)
    loop.add(first, same, other)
    assert [row[0] for row in prefill(loop.step())] == [first, other]


def test_in_other_namespaces_nobody_waits_and_nothing_is_shared() -> None:
    loop = Loop()
    first, other = text(11, namespace="a"), text(11, namespace="b")
    loop.run(first, other)
    assert (first.cached, other.cached) == (0, 0)
    assert loop.runner.rows >= 22


def test_those_who_wait_go_on_when_the_one_they_wait_for_is_gone() -> None:
    loop = Loop(overlap=True)
    first, second, third = (text(11) for _ in range(3))
    loop.add(first, second, third)
    loop.step()  # not read yet
    assert (len(loop.scheduler.leaders), len(loop.scheduler.waiting)) == (2, 0)
    loop.scheduler.remove(third)
    assert len(loop.scheduler.leaders) == 1
    loop.scheduler.remove(first)
    assert list(loop.scheduler.waiting) == [second]
    loop.run()
    assert loop.answers[second] == solitary(second.prompt, [], 0, second.max_positions)
    loop.check_idle()


def test_a_cached_page_is_evicted_before_anybody_is_preempted() -> None:
    loop = Loop(pages=8)
    loop.run(text(17, more=2))
    assert loop.pool.idle > 3
    one = text(9, first=40, more=20)
    loop.run(one)
    assert loop.scheduler.preemptions == 0
    assert loop.answers[one] == solitary(one.prompt, [], 0, one.max_positions)


def test_a_prefix_that_leaves_no_page_to_copy_to_is_shortened() -> None:
    """All four pages are cached; going on needs the fourth, which would be the source of the copy."""
    loop = Loop(pages=4)
    loop.run(text(15, more=1))
    one = text(15, more=1)
    loop.add(one)
    assert prefill(loop.step()) == [(one, 12, 15)]


def test_a_page_to_be_copied_is_not_copied_to_in_the_same_step() -> None:
    """The second one's pages would be had by evicting the first one's source, which is older than what it looked at."""
    loop = Loop(pages=7)
    loop.run(sequence([30, 31, 32, 33, 34], more=1))
    loop.run(sequence([20, 21, "image"], [picture("a")], more=1))
    first = sequence([30, 31, 32, 33, 34, 35, 36], more=2)
    second = sequence([20, 21, "image"], [picture("a")], more=1)  # nothing of a picture that ends a prompt is reused
    loop.add(first, second)
    plan = loop.step()
    assert prefill(plan) == [(first, 6, 8)]
    assert plan is not None and [copy.source for copy in plan.copies] == [1]
    loop.run()
    for one in (first, second):
        assert loop.answers[one] == solitary(one.prompt, one.pictures, 0, one.max_positions)


# Ends


def test_removal_while_waiting_and_while_running_gives_all_back() -> None:
    loop = Loop(pages=5, slots=1)
    running, waiting, last = text(4), text(4, first=30), text(4, first=40)
    loop.add(running, waiting, last)
    loop.step()
    loop.scheduler.remove(waiting)
    assert (waiting.slot, waiting.pages, list(loop.scheduler.waiting)) == (-1, [], [last])
    loop.scheduler.remove(running)
    assert (loop.pool.free + loop.pool.idle, running.slot, running.pages) == (5, -1, [])
    assert [row[0] for row in prefill(loop.step())] == [last]


def test_what_is_read_of_a_removed_sequence_is_dropped() -> None:
    loop = Loop(overlap=True)
    one, other = text(5), text(5, first=40)
    loop.add(one, other)
    loop.step()
    loop.scheduler.remove(one)
    loop.run()
    assert list(loop.answers) == [other]
    loop.check_idle()


def test_a_token_that_is_not_sound_is_told_and_leaves_no_trace() -> None:
    loop, one = Loop(), text(11)
    loop.add(one)
    plan = loop.scheduler.plan()
    assert plan is not None
    broken = SampledToken(20, 0, (0.0, 0.0), sound=False)
    assert loop.scheduler.commit(plan, [broken]) == [(one, broken)]
    assert (one.sampled, one.computed) == ([], 0)
    loop.scheduler.remove(one)
    assert loop.pool.free == loop.pool.count  # nothing of it is cached


def test_a_step_can_be_done_over_one_by_one() -> None:
    loop = Loop()
    loop.run(sequence(["image", 21, 20], [picture("a")]))
    them = [sequence(["image", token, 20], [picture(name)]) for token, name in ((22, "a"), (23, "b"))]
    old = text(5, first=40)
    loop.add(old)
    loop.step()
    loop.add(*them)
    plan = loop.scheduler.plan()
    assert plan is not None
    parts = list(plan.singly())
    assert [[c.sequence for c in part.chunks] for part in parts] == [[them[0]], [them[1]], [old]]
    assert [len(part.pictures) for part in parts] == [0, 1, 0]
    assert [len(part.copies) for part in parts] == [1, 0, 0]
    for part in parts:
        loop.scheduler.commit(part, loop.runner.launch(part).read().tokens)
    loop.run()
    for one in (*them, old):
        assert loop.answers[one] == solitary(one.prompt, one.pictures, 0, one.max_positions)


def test_a_sequence_that_can_never_fit_is_the_callers_fault() -> None:
    with pytest.raises(AssertionError):
        Loop(pages=2).add(text(2, more=2 * PAGE))


def test_a_prompt_is_looked_up_once_however_often_it_begins() -> None:
    """Also where it is preempted before its first token."""
    loop, one = Loop(prefill_tokens=PAGE), text(3 * PAGE)
    loop.add(one)
    loop.step()
    loop.scheduler._preempt(one)
    loop.run()
    assert loop.answers[one]
    assert loop.scheduler.prefix_queries == len(one.prompt)
