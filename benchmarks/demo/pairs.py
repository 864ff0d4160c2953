"""Dialogues about two pictures given in one turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.demo.dialogue import Dialogue, ask
from benchmarks.demo.pictures import Scene
from benchmarks.demo.seeing import listing
from benchmarks.demo.words import COLOURS, KINDS, article

_ORDINALS = ("first", "second")


def more_shapes(draw: np.random.Generator, first: Scene, second: Scene) -> Dialogue | None:
    difference = len(first.shapes) - len(second.shapes)
    if difference == 0:
        return None
    more = bool(draw.random() < 0.6)
    question = f"Which image has {'more' if more else 'fewer'} shapes?"
    return ask("two pictures", question, f"The {_ORDINALS[int((difference > 0) is not more)]} image.", pictures=2)


def which_has(draw: np.random.Generator, first: Scene, second: Scene) -> Dialogue | None:
    trait, found = _trait(draw, first, second)
    if found[0] == found[1]:
        return None
    question = f"Which image has {trait}?"
    return ask("two pictures", question, f"The {_ORDINALS[found.index(True)]} image.", pictures=2)


def both_have(draw: np.random.Generator, first: Scene, second: Scene) -> Dialogue:
    trait, found = _trait(draw, first, second)
    return ask("two pictures", f"Do both images show {trait}?", "Yes." if all(found) else "No.", pictures=2)


def about_one(draw: np.random.Generator, first: Scene, second: Scene) -> Dialogue:
    which = int(draw.integers(2))
    scene, name = (first, second)[which], _ORDINALS[which]
    if draw.random() < 0.5:
        question = f"How many shapes are in the {name} image?"
        return ask("two pictures", question, str(len(scene.shapes)), pictures=2)
    question = f"What is in the {name} image?"
    return ask("two pictures", question, f"The {name} image shows {listing(scene.shapes)}.", pictures=2)


def about_both(draw: np.random.Generator, first: Scene, second: Scene) -> Dialogue:
    questions = (
        "What is in these images?",
        "What is in this image?",
        "Describe both images.",
        "Compare these images.",
        "What do these images show?",
    )
    question = questions[int(draw.integers(len(questions)))]
    answer = f"The first image shows {listing(first.shapes)}. The second image shows {listing(second.shapes)}."
    return ask("two pictures", question, answer, pictures=2)


ABOUT_TWO_PICTURES: tuple[Callable[[np.random.Generator, Scene, Scene], Dialogue | None], ...] = (
    more_shapes,
    which_has,
    both_have,
    about_one,
    about_one,
    about_both,
    about_both,
)
ABOUT_TWO_NAMELESS: tuple[Callable[[np.random.Generator, Scene, Scene], Dialogue | None], ...] = (
    which_has,
    which_has,
    both_have,
    both_have,
    more_shapes,
)
"""About pictures with shapes whose colour, or whose kind, has no name."""


def _trait(draw: np.random.Generator, first: Scene, second: Scene) -> tuple[str, list[bool]]:
    """A kind or a colour, mostly one that a picture shows, and which of the two have it; a kind where a colour has no
    name, a colour where a kind has none.
    """
    shapes = (*first.shapes, *second.shapes)
    named = [s for s in shapes if s.kind in KINDS and s.colour in COLOURS]
    shape = named[int(draw.integers(len(named)))] if named and draw.random() < 0.8 else None
    by_kind = draw.random() < 0.5
    if len(named) < len(shapes):
        by_kind = all(s.kind in KINDS for s in shapes)
    if by_kind:
        kind = shape.kind if shape else KINDS[int(draw.integers(len(KINDS)))]
        return article(kind), [any(s.kind == kind for s in scene.shapes) for scene in (first, second)]
    colour = shape.colour if shape else tuple(COLOURS)[int(draw.integers(len(COLOURS)))]
    return article(f"{colour} shape"), [any(s.colour == colour for s in scene.shapes) for scene in (first, second)]
