"""What the generated dialogues say is true."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from benchmarks.demo.dialogue import Grounded
from benchmarks.demo.exam import facts
from benchmarks.demo.pairs import ABOUT_TWO_PICTURES
from benchmarks.demo.pictures import Scene, draw_scene
from benchmarks.demo.seeing import ABOUT_A_PICTURE, caption_text, listing, region
from benchmarks.demo.talking import ABOUT_NOTHING
from benchmarks.demo.words import KINDS, plural

COUNT = 200


def scenes() -> list[Scene]:
    draw = np.random.default_rng(1)
    return [draw_scene(draw, held_out=i % 2 == 0) for i in range(COUNT)]


@pytest.mark.parametrize("kind", ["arithmetic", "word problem"])
@pytest.mark.parametrize("held_out", [False, True])
def test_sums(kind: str, held_out: bool) -> None:
    """The last answer is the result of the trace, and of the operation on the question's two numbers."""
    draw = np.random.default_rng(2)
    for _ in range(COUNT):
        last = ABOUT_NOTHING[kind][1](draw, held_out=held_out).exchanges[-1]
        numbers = [int(n) for n in re.findall(r"\d+", last.question)]
        if last.trace is not None:
            a, sign, b, result = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", str(last.trace[0])).groups()  # type: ignore[union-attr]
            assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) == int(last.answer)
            assert not numbers or {int(a), int(b)} == set(numbers)
        elif numbers:
            assert int(last.answer) in (sum(numbers), abs(numbers[0] - numbers[1]))


def test_names_are_recalled() -> None:
    draw = np.random.default_rng(3)
    for _ in range(COUNT):
        dialogue = ABOUT_NOTHING["name"][1](draw)
        said = dialogue.system + " ".join(e.question for e in dialogue.exchanges)
        assert dialogue.exchanges[-1].answer in said


def test_counts_and_looks() -> None:
    draw = np.random.default_rng(4)
    for scene in scenes():
        made = ABOUT_A_PICTURE["count"][1](draw, scene)
        assert made is not None
        (exchange,) = made.exchanges
        words = set(re.findall(r"\w+", exchange.question))
        wanted = [
            shape
            for shape in scene.shapes
            if not words & set(map(plural, KINDS)) or plural(shape.kind) in words
            if not words & {s.colour for s in scene.shapes} or shape.colour in words
        ]
        if words & {"red", "orange", "yellow", "green", "blue", "purple"} - {s.colour for s in scene.shapes}:
            wanted = []
        assert exchange.answer == str(len(wanted))
        for part in exchange.trace or ():
            if isinstance(part, Grounded):
                assert Counter(part.points) == Counter((s.x, s.y) for s in wanted)
        if made := ABOUT_A_PICTURE["colour"][1](draw, scene):
            (exchange,) = made.exchanges
            kind, colour = re.fullmatch(r"The (\w+) is (\w+)\.", exchange.answer).groups()  # type: ignore[union-attr]
            assert [s.colour for s in scene.shapes if s.kind == kind] == [colour]


def test_presence_and_relations() -> None:
    draw = np.random.default_rng(5)
    answers: Counter[str] = Counter()
    for scene in scenes():
        made = ABOUT_A_PICTURE["presence"][1](draw, scene)
        assert made is not None
        (exchange,) = made.exchanges
        answers[exchange.answer] += 1
        found = re.search(r"\b(?:an?|anything) (.+?)(?: in the image)?\?", exchange.question)
        assert found
        thing = found[1].removesuffix(" shape")
        is_there = any(thing in (s.name, s.kind, s.colour) for s in scene.shapes)
        assert exchange.answer == ("Yes." if is_there else "No.")
        if made := ABOUT_A_PICTURE["relation"][1](draw, scene):
            (exchange,) = made.exchanges
            sides = re.match(
                r"Is the (\w+ \w+) (to the left of|to the right of|above|below) the (\w+ \w+)", exchange.question
            )
            if sides:
                a, b = (next(s for s in scene.shapes if s.name == sides[i]) for i in (1, 3))
                holds = {
                    "to the left of": a.x < b.x,
                    "to the right of": a.x > b.x,
                    "above": a.y < b.y,
                    "below": a.y > b.y,
                }[sides[2]]
                assert exchange.answer == ("Yes." if holds else "No.")
    assert min(answers["Yes."], answers["No."]) > COUNT / 5


def test_objects_are_those_asked_for() -> None:
    draw = np.random.default_rng(6)
    empty = 0
    for scene in scenes():
        made = ABOUT_A_PICTURE["objects"][1](draw, scene)
        assert made is not None
        empty += not made.shapes
        assert list(made.shapes) == sorted(made.shapes, key=lambda s: s.x)
        words = made.target.split()
        for shape in scene.shapes:
            names = {shape.colour, shape.kind, plural(shape.kind), "shape", "shapes", "object", "all"}
            assert (shape in made.shapes) is (set(words) <= names), (made.target, shape)
    assert COUNT / 20 < empty < COUNT / 2


def test_captions_state_the_facts() -> None:
    for scene in scenes():
        looks = Counter(s.name for s in scene.shapes)
        for length in ("short", "normal"):
            said = facts(caption_text(scene, length))
            assert {k.strip(): n for k, n in said.items() if k.strip() in looks} == looks
        long = caption_text(scene, "long")
        assert facts(long)[f"{scene.background} background"] == 1
        for shape in scene.shapes:
            assert f"{shape.name} {region(shape)}." in long


def test_facts_do_not_depend_on_order_but_on_everything_else() -> None:
    a = facts("The image shows a red circle and two blue stars.")
    assert a == facts("Two blue stars and a red circle.")
    for other in ("a red circle and a blue star", "two blue stars", "a red star and two blue circles", "an odd answer"):
        assert a != facts(other)
    first = facts("The first image shows a red circle. The second image shows a blue cross.")
    assert first != facts("The first image shows a blue cross. The second image shows a red circle.")
    here = facts("There is a red circle on the left. There is a red cross at the top right.")
    assert here != facts("There is a red circle at the top right. There is a red cross on the left.")


def test_two_pictures() -> None:
    draw = np.random.default_rng(7)
    every = scenes()
    for first, second in itertools.pairwise(every):
        for make in ABOUT_TWO_PICTURES:
            made = make(draw, first, second)
            if made is None:
                continue
            (exchange,) = made.exchanges
            assert exchange.pictures == 2
            if "more shapes" in exchange.question:
                larger = "first" if len(first.shapes) > len(second.shapes) else "second"
                assert exchange.answer == f"The {larger} image."
            if "these images" in exchange.question:
                assert listing(first.shapes) in exchange.answer
                assert listing(second.shapes) in exchange.answer
