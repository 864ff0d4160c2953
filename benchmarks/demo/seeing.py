"""Dialogues about one picture, and what is true of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.demo.dialogue import Dialogue, Exchange, Grounded, Length, Skill, Trace, ask
from benchmarks.demo.honesty import ABSENT_THINGS, NO_SHAPES, UNKNOWN, odd_picture_question
from benchmarks.demo.pictures import Scene, Shape
from benchmarks.demo.words import COLOURS, HELD_OUT_LOOKS, KINDS, LOOKS, NUMBER_WORDS, article, joined, plural

_WHAT = (
    "What is in this image?",
    "What is in this picture?",
    "What is in the image?",
    "What do you see?",
    "What do you see in this image?",
    "What does this image show?",
    "What's in this image?",
    "Describe this image.",
    "Describe the picture.",
    "Describe it.",
)
_LIST = (
    "List the shapes from left to right.",
    "List all shapes.",
    "List the shapes.",
    "Which shapes are there?",
    "Name the shapes from left to right.",
)
_HOW_MANY = ("How many {} are there?", "How many {} are in the image?", "How many {} do you see?", "Count the {}.")
_COLOUR_OF = ("What color is the {}?", "What colour is the {}?", "Which color does the {} have?")
_SHAPE_OF = ("What shape is {}?", "Which shape is {}?", "What is the {} shape?", "What shape is the {} one?")
_IS_THERE = (
    "Is there {} in the image?",
    "Is there {}?",
    "Do you see {}?",
    "Can you see {}?",
    "Does the image show {}?",
)
_SIDES: dict[str, Callable[[Shape, Shape], bool]] = {
    "to the left of": lambda a, b: a.x < b.x - 0.05,
    "to the right of": lambda a, b: a.x > b.x + 0.05,
    "above": lambda a, b: a.y < b.y - 0.08,
    "below": lambda a, b: a.y > b.y + 0.08,
}
_ENDS: dict[str, Callable[[Shape], float]] = {
    "on the far left": lambda s: s.x,
    "on the far right": lambda s: -s.x,
    "at the top": lambda s: s.y,
    "at the bottom": lambda s: -s.y,
}


def listing(shapes: Sequence[Shape]) -> str:
    """ "a red circle and two blue stars", in the order in which each look first comes from the left."""
    counts = Counter(shape.look for shape in shapes)
    return joined(
        [
            article(f"{colour} {kind}") if n == 1 else f"{NUMBER_WORDS[n]} {colour} {plural(kind)}"
            for (colour, kind), n in counts.items()
        ]
    )


def region(shape: Shape) -> str:
    """Where in the picture a shape's centre is, in words."""
    row = ("top", "middle", "bottom")[int(shape.y * 3)]
    column = ("left", "middle", "right")[int(shape.x * 3)]
    if row == column == "middle":
        return "in the middle"
    if row == "middle":
        return f"on the {column}"
    return f"at the {row}" if column == "middle" else f"at the {row} {column}"


def counted(n: int, noun: str) -> str:
    """ "one shape", "three shapes"."""
    return f"{NUMBER_WORDS[n]} {noun if n == 1 else plural(noun)}"


def describe(draw: np.random.Generator, scene: Scene) -> Dialogue:
    answer = f"The image shows {listing(scene.shapes)}." if scene.shapes else NO_SHAPES
    question = _WHAT[0] if draw.random() < 0.3 else _one(draw, _WHAT)
    trace: Trace | None = None
    if scene.shapes and draw.random() < 0.12:
        trace = ("I see ", *_grounded_each(scene.shapes), ".")
    return ask("describe", question, answer, trace=trace)


def caption(draw: np.random.Generator, scene: Scene) -> Dialogue:
    lengths: tuple[Length, ...] = ("short", "normal", "long")
    length = lengths[int(draw.integers(3))]
    return Dialogue(
        task=f"caption {length}",
        skill="caption",
        length=length,
        exchanges=(Exchange(question="", answer=caption_text(scene, length)),),
    )


def caption_text(scene: Scene, length: str) -> str:
    if not scene.shapes:
        return NO_SHAPES
    text = listing(scene.shapes)
    if length == "short":
        return text[0].upper() + text[1:] + "."
    ground = f"on {article(scene.background)} background"
    if length == "normal":
        return f"{counted(len(scene.shapes), 'shape').capitalize()} {ground}: {text}."
    places = [f"There is {article(s.name)} {region(s)}." for s in scene.shapes]
    return f"The image shows {counted(len(scene.shapes), 'shape')} {ground}. " + " ".join(places)


def list_shapes(draw: np.random.Generator, scene: Scene) -> Dialogue:
    text = listing(scene.shapes) if scene.shapes else ""
    return ask("list", _one(draw, _LIST), text[0].upper() + text[1:] + "." if text else NO_SHAPES)


def count(draw: np.random.Generator, scene: Scene) -> Dialogue:
    """All shapes, those of a kind or those of a colour; one in four with the points it counts in its trace."""
    way = draw.random()
    if way < 0.3:
        return _count(draw, "count", "shapes", list(scene.shapes))
    return _count_by_kind(draw, scene) if way < 0.65 else _count_by_colour(draw, scene)


def _count_by_kind(draw: np.random.Generator, scene: Scene) -> Dialogue:
    kind = _favour(draw, [s.kind for s in scene.shapes], KINDS)
    return _count(draw, "count by kind", plural(kind), [s for s in scene.shapes if s.kind == kind])


def _count_by_colour(draw: np.random.Generator, scene: Scene) -> Dialogue:
    colour = _favour(draw, [s.colour for s in scene.shapes], tuple(COLOURS))
    return _count(draw, "count by colour", f"{colour} shapes", [s for s in scene.shapes if s.colour == colour])


def _count(draw: np.random.Generator, task: str, noun: str, found: list[Shape]) -> Dialogue:
    trace: Trace | None = None
    if draw.random() < 0.25:
        task = "grounded count"
        singular = noun if len(found) != 1 else noun[:-2] if noun == "crosses" else noun[:-1]
        text = f"{NUMBER_WORDS[len(found)]} {singular}"
        trace = ("I see ", Grounded(text, _centres(found)), ".") if found else (f"I see {text}.",)
    return ask(task, _one(draw, _HOW_MANY).format(noun), str(len(found)), trace=trace)


def colour_of(draw: np.random.Generator, scene: Scene) -> Dialogue | None:
    if not (shape := _only(draw, scene, [s.kind for s in scene.shapes])):
        return None
    answer = f"The {shape.kind} is {shape.colour}."
    return ask("colour of a shape", _one(draw, _COLOUR_OF).format(shape.kind), answer, trace=_look(draw, shape))


def shape_of(draw: np.random.Generator, scene: Scene) -> Dialogue | None:
    if not (shape := _only(draw, scene, [s.colour for s in scene.shapes])):
        return None
    answer = f"The {shape.colour} shape is {article(shape.kind)}."
    return ask("shape of a colour", _one(draw, _SHAPE_OF).format(shape.colour), answer, trace=_look(draw, shape))


def presence(draw: np.random.Generator, scene: Scene) -> Dialogue:
    """A look, a kind or a colour; or, seldom, a thing that no picture of ours shows."""
    if draw.random() < 0.1:
        return ask("presence", _one(draw, _IS_THERE).format(article(_one(draw, ABSENT_THINGS))), "No.")
    way = draw.random()
    if way < 0.5:
        colour, kind = _look_of_interest(draw, scene)
        phrase, found = article(f"{colour} {kind}"), any(s.look == (colour, kind) for s in scene.shapes)
    else:
        return _presence_by_kind(draw, scene) if way < 0.75 else _presence_by_colour(draw, scene)
    return ask("presence", _one(draw, _IS_THERE).format(phrase), "Yes." if found else "No.")


def _presence_by_kind(draw: np.random.Generator, scene: Scene) -> Dialogue:
    kind = _favour(draw, [s.kind for s in scene.shapes], KINDS, share=0.35)
    found = any(s.kind == kind for s in scene.shapes)
    return ask("presence", _one(draw, _IS_THERE).format(article(kind)), "Yes." if found else "No.")


def _presence_by_colour(draw: np.random.Generator, scene: Scene) -> Dialogue:
    colour = _favour(draw, [s.colour for s in scene.shapes], tuple(COLOURS), share=0.35)
    found = any(s.colour == colour for s in scene.shapes)
    phrase = f"anything {colour}" if draw.random() < 0.3 else article(f"{colour} shape")
    return ask("presence", _one(draw, _IS_THERE).format(phrase), "Yes." if found else "No.")


def relation(draw: np.random.Generator, scene: Scene) -> Dialogue | None:
    single = _singles(scene)
    if len(single) < 2:
        return None
    if draw.random() < 0.35:
        where = _one(draw, tuple(_ENDS))
        order = sorted(scene.shapes, key=_ENDS[where])
        if abs(_ENDS[where](order[0]) - _ENDS[where](order[1])) < 0.06:
            return None
        name = order[0].name
        return ask("relation", f"Which shape is {where}?", article(name).capitalize() + ".")
    first, second = (single[int(i)] for i in draw.permutation(len(single))[:2])
    side = _one(draw, tuple(_SIDES))
    holds, opposite = _SIDES[side](first, second), _SIDES[side](second, first)
    if holds == opposite:
        return None
    return ask("relation", f"Is the {first.name} {side} the {second.name}?", "Yes." if holds else "No.")


def background(draw: np.random.Generator, scene: Scene) -> Dialogue | None:
    if scene.background == "other":
        return None
    question = _one(draw, ("What is the background like?", "What kind of background is it?"))
    return ask("background", question, f"The background is {scene.background}.")


def objects(draw: np.random.Generator, scene: Scene) -> Dialogue:
    """Detect or point: all shapes, a kind, a colour, a look, or what is not there."""
    skill: Skill = "detect" if draw.random() < 0.6 else "point"
    way = draw.random()
    if way < 0.3:
        return _objects(skill, _one(draw, ("shape", "shapes", "object", "all shapes")), list(scene.shapes))
    if way < 0.5:
        return _objects_by_kind(draw, scene, skill)
    if way < 0.68:
        return _objects_by_colour(draw, scene, skill)
    if way < 0.93:
        look = _look_of_interest(draw, scene, share=0.7)
        return _objects(skill, " ".join(look), [s for s in scene.shapes if s.look == look])
    return _objects(skill, _one(draw, ABSENT_THINGS), [])


def _objects_by_kind(draw: np.random.Generator, scene: Scene, skill: Skill) -> Dialogue:
    kind = _favour(draw, [s.kind for s in scene.shapes], KINDS)
    return _objects(skill, _one(draw, (kind, kind, plural(kind))), [s for s in scene.shapes if s.kind == kind])


def _objects_by_colour(draw: np.random.Generator, scene: Scene, skill: Skill) -> Dialogue:
    colour = _favour(draw, [s.colour for s in scene.shapes], tuple(COLOURS))
    target = _one(draw, (f"{colour} shape", f"{colour} shapes"))
    return _objects(skill, target, [s for s in scene.shapes if s.colour == colour])


def _objects(skill: Skill, target: str, found: list[Shape]) -> Dialogue:
    task = skill if found else f"{skill} absent"
    return Dialogue(task=task, skill=skill, target=target, shapes=tuple(found))


def at_place(draw: np.random.Generator, scene: Scene) -> Dialogue | None:
    """What is at a point or in a box; a point beside all shapes is on the background."""
    if draw.random() < 0.15:
        for _ in range(20):
            x, y = (float(v) for v in draw.uniform(0.03, 0.97, 2))
            if all(abs(x - s.x) > s.w / 2 + 0.08 or abs(y - s.y) > s.h / 2 + 0.08 for s in scene.shapes):
                return ask("spatial reference", "What is at this point?", "Only the background.", refs=((x, y),))
        return None
    if not scene.shapes:
        return None
    shape = scene.shapes[int(draw.integers(len(scene.shapes)))]
    answer = article(shape.name).capitalize() + "."
    if draw.random() < 0.5:
        x, y = shape.x + draw.uniform(-0.15, 0.15) * shape.w, shape.y + draw.uniform(-0.15, 0.15) * shape.h
        question = _one(draw, ("What is at this point?", "What is here?", "What is this?"))
        return ask("spatial reference", question, answer, refs=((float(x), float(y)),))
    slack = draw.uniform(0.9, 1.2, 2)
    w, h = shape.w * slack[0] / 2, shape.h * slack[1] / 2
    box = (max(0.0, shape.x - w), max(0.0, shape.y - h), min(1.0, shape.x + w), min(1.0, shape.y + h))
    question = _one(draw, ("What is in this box?", "What is here?", "What is this?"))
    return ask("spatial reference", question, answer, refs=(tuple(float(v) for v in box),))


def odd(draw: np.random.Generator, scene: Scene) -> Dialogue:
    return ask("refusal", odd_picture_question(draw), UNKNOWN)


def by_trait(draw: np.random.Generator, scene: Scene) -> Dialogue:
    """About a picture with shapes whose colour, or whose kind, has no name: only what can be said by the other trait.

    To count the red shapes among some that have no name, red must be seen apart from what is red: without these
    questions the model counts looks, and misses those that training never shows.
    """
    by_kind = all(s.kind in KINDS for s in scene.shapes)
    way = draw.random()
    if way < 0.1:
        return _count(draw, "count", "shapes", list(scene.shapes))
    if way < 0.6:
        return (_count_by_kind if by_kind else _count_by_colour)(draw, scene)
    if way < 0.75:
        return (_presence_by_kind if by_kind else _presence_by_colour)(draw, scene)
    skill: Skill = "detect" if draw.random() < 0.6 else "point"
    return (_objects_by_kind if by_kind else _objects_by_colour)(draw, scene, skill)


ABOUT_A_PICTURE: dict[str, tuple[float, Callable[[np.random.Generator, Scene], Dialogue | None]]] = {
    "describe": (2.2, describe),
    "caption": (3.3, caption),
    "list": (1.5, list_shapes),
    "count": (4.5, count),
    "colour": (1.3, colour_of),
    "shape": (1.0, shape_of),
    "presence": (2.9, presence),
    "relation": (3.0, relation),
    "background": (0.8, background),
    "objects": (4.8, objects),
    "place": (1.4, at_place),
    "odd": (0.25, odd),
}
"""Generator of each kind of question, with its share in training."""


def _grounded_each(shapes: Sequence[Shape]) -> list[str | Grounded]:
    """A listing whose every part points at its shapes."""
    counts = Counter(shape.look for shape in shapes)
    parts: list[str | Grounded] = []
    for i, (look, n) in enumerate(counts.items()):
        if i:
            parts.append(" and " if i == len(counts) - 1 else ", ")
        same = [s for s in shapes if s.look == look]
        parts.append(Grounded(listing(same), _centres(same)))
        assert n == len(same)
    return parts


def _centres(shapes: Sequence[Shape]) -> tuple[tuple[float, float], ...]:
    return tuple((s.x, s.y) for s in shapes)


def _look(draw: np.random.Generator, shape: Shape) -> Trace | None:
    """For one answer in eight: a trace that points at the shape."""
    return ("I see ", Grounded(article(shape.name), _centres([shape])), ".") if draw.random() < 0.12 else None


def _only(draw: np.random.Generator, scene: Scene, traits: list[str]) -> Shape | None:
    """A shape that no other shares its trait with."""
    alone = [s for s, trait in zip(scene.shapes, traits, strict=True) if traits.count(trait) == 1]
    return alone[int(draw.integers(len(alone)))] if alone else None


def _singles(scene: Scene) -> list[Shape]:
    looks = [s.look for s in scene.shapes]
    return [s for s in scene.shapes if looks.count(s.look) == 1]


def _favour(draw: np.random.Generator, present: list[str], every: tuple[str, ...], share: float = 0.75) -> str:
    """One that is there and has a name, in `share` of the cases; else any."""
    present = [name for name in present if name in every]
    return _one(draw, tuple(present) if present and draw.random() < share else every)


def _look_of_interest(draw: np.random.Generator, scene: Scene, share: float = 0.5) -> tuple[str, str]:
    """A look that is there; else, mostly, one that shares a trait with one that is. Never names a held-out look
    that is absent: training would learn that it always is.
    """
    if scene.shapes and draw.random() < share:
        return scene.shapes[int(draw.integers(len(scene.shapes)))].look
    while True:
        look = LOOKS[int(draw.integers(len(LOOKS)))]
        if scene.shapes and draw.random() < 0.7:
            shape = scene.shapes[int(draw.integers(len(scene.shapes)))]
            look = (shape.colour, look[1]) if draw.random() < 0.5 else (look[0], shape.kind)
        if look not in HELD_OUT_LOOKS or any(s.look == look for s in scene.shapes):
            return look


def _one(draw: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(draw.integers(len(items)))]
