"""What is held out of the demo's training is never in what training draws."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from benchmarks.demo.dialogue import Dialogue
from benchmarks.demo.pictures import draw_scene
from benchmarks.demo.seeing import ABOUT_A_PICTURE
from benchmarks.demo.talking import ABOUT_NOTHING
from benchmarks.demo.words import (
    HELD_OUT_LOOKS,
    HELD_OUT_NAMES,
    HELD_OUT_OBJECTS,
    LARGEST_NUMBER,
    NAMES,
    OBJECTS,
    any_name,
    held_out_name,
    held_out_pair,
    number_pair,
)

COUNT = 300


def texts(dialogue: Dialogue) -> Iterator[str]:
    yield dialogue.system
    for exchange in dialogue.exchanges:
        yield from (exchange.question, exchange.answer)


def test_names() -> None:
    draw = np.random.default_rng(0)
    seen = {any_name(draw) for _ in range(COUNT)}
    unseen = {any_name(draw, held_out=True) for _ in range(COUNT)}
    assert not seen & unseen
    assert not any(map(held_out_name, seen))
    assert all(map(held_out_name, unseen))
    assert not set(NAMES) & set(HELD_OUT_NAMES)
    made_up = [name for name in seen if name not in NAMES]
    assert len(made_up) > len(seen) / 2


def test_number_pairs() -> None:
    numbers = range(LARGEST_NUMBER + 1)
    pairs = [(a, b) for a in numbers for b in numbers]
    assert all(held_out_pair(a, b) == held_out_pair(b, a) for a, b in pairs)
    share = sum(held_out_pair(a, b) for a, b in pairs) / len(pairs)
    assert 0.05 < share < 0.15
    assert not held_out_pair(2, 2)  # the page's own examples are for training
    assert not held_out_pair(5, 2)
    draw = np.random.default_rng(0)
    for held_out in (False, True):
        assert all(held_out_pair(*number_pair(draw, held_out=held_out)) is held_out for _ in range(COUNT))


def test_sums_and_problems_of_training_use_training_pairs_and_objects() -> None:
    draw = np.random.default_rng(0)
    for kind in ("arithmetic", "word problem"):
        for _ in range(COUNT):
            for text in texts(ABOUT_NOTHING[kind][1](draw)):
                assert not any(thing in text for thing in HELD_OUT_OBJECTS), text
                found = [int(n) for n in re.findall(r"\d+", text)]
                assert len(found) < 2 or len(found) > 2 or not held_out_pair(found[0], found[1]), text
    assert not set(OBJECTS) & set(HELD_OUT_OBJECTS)


def test_looks() -> None:
    draw = np.random.default_rng(0)
    names = {" ".join(look) for look in HELD_OUT_LOOKS}
    for _ in range(COUNT):
        scene = draw_scene(draw)
        assert not any(shape.look in HELD_OUT_LOOKS for shape in scene.shapes)
        for _, make in ABOUT_A_PICTURE.values():
            dialogue = make(draw, scene)
            assert dialogue is None or not any(name in text for name in names for text in texts(dialogue))
            assert dialogue is None or dialogue.target not in names
        assert any(shape.look in HELD_OUT_LOOKS for shape in draw_scene(draw, held_out=True).shapes)


def test_no_held_out_name_is_drawn_beside_the_question() -> None:
    draw = np.random.default_rng(0)
    for _, make in ABOUT_NOTHING.values():
        for _ in range(COUNT // 3):
            words = {word for text in texts(make(draw)) for word in re.findall(r"[A-Z]\w+", text)}
            assert not words & set(HELD_OUT_NAMES)
