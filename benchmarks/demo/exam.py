"""Fresh questions as requests to an engine, and the judging of its answers."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.demo.dialogue import Dialogue, Exchange, Grounded
from benchmarks.demo.honesty import UNKNOWN
from benchmarks.demo.pairs import ABOUT_TWO_PICTURES
from benchmarks.demo.pictures import draw_other, draw_scene, paint
from benchmarks.demo.seeing import ABOUT_A_PICTURE, describe
from benchmarks.demo.talking import ABOUT_NOTHING, aside
from benchmarks.demo.words import COLOURS, KINDS, NUMBER_WORDS, plural
from mdinfer.request import Caption, Chat, Detect, Point, Query, Request
from mdinfer.result import Result

MAX_TOKENS = 160
NEAR = 0.05  # of a picture's side: how far a found centre or extent may be from the true one

TARGETS = {
    "arithmetic": 0.97,
    "arithmetic, reasoned": 0.97,
    "word problem": 0.97,
    "word problem, reasoned": 0.97,
    "presence": 0.97,
    "count": 0.97,
    "count by kind": 0.97,
    "count by colour": 0.97,
    "shape of a colour": 0.97,
    "colour of a shape": 0.97,
    "name": 0.95,
    "list": 0.90,
    "caption short": 0.90,
    "caption normal": 0.90,
    "caption long": 0.90,
    "describe": 0.90,
    "detect recall": 0.92,
    "detect precision": 0.92,
    "point recall": 0.92,
    "point precision": 0.92,
    "detect absent": 0.95,
    "point absent": 0.95,
    "two pictures": 0.90,
    "refusal": 0.95,
    "no shapes": 0.95,
}
_BY_FACTS = ("list", "describe", "caption short", "caption normal", "caption long", "two pictures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    request: Request
    dialogue: Dialogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """right of count; note says what was asked, expected and heard."""

    right: int
    count: int
    note: str = ""


def exam(seed: int, cases: int, *, held_out: bool = True) -> list[Case]:
    """`cases` questions of each kind, more of the kinds that hold several tasks; all of the same splits."""
    made: list[Case] = []
    for number, (kind, (_, make)) in enumerate(ABOUT_A_PICTURE.items()):
        draw = np.random.default_rng((seed, 1, number))
        times = {"objects": 4, "count": 3, "caption": 3}.get(kind, 1)
        made += _until(cases * times, functools.partial(_about_one, draw, make, held_out))
    draw = np.random.default_rng((seed, 2))
    made += _until(cases, lambda: _about_one(draw, describe, held_out, other=True))
    made += _until(cases, lambda: _about_two(draw, held_out))
    made += _until(cases, lambda: _later(draw, held_out))
    for number, (kind, (_, talk)) in enumerate(ABOUT_NOTHING.items()):
        draw_ = np.random.default_rng((seed, 3, number))
        times = 2 if kind in ("arithmetic", "word problem") else 1
        for _ in range(cases * times):
            dialogue = talk(draw_, held_out=held_out)
            made.append(Case(request=as_request(dialogue, []), dialogue=dialogue))
    return made


def as_request(dialogue: Dialogue, pictures: list[Image.Image]) -> Request:
    """Greedy; the pictures stand where the exchanges say."""
    if dialogue.skill == "caption":
        return Caption(image=pictures[0], length=dialogue.length, temperature=0, max_tokens=MAX_TOKENS)
    if dialogue.skill == "detect":
        return Detect(image=pictures[0], object=dialogue.target, max_objects=20)
    if dialogue.skill == "point":
        return Point(image=pictures[0], object=dialogue.target, max_objects=20)
    last = dialogue.exchanges[-1]
    if last.refs:
        return Query(
            image=pictures[0], question=last.question, spatial_refs=last.refs, temperature=0, max_tokens=MAX_TOKENS
        )
    waiting = iter(pictures)
    messages: list[dict[str, Any]] = []
    if dialogue.system:
        messages.append({"role": "system", "content": dialogue.system})
    for exchange in dialogue.exchanges:
        parts: list[dict[str, Any]] = [{"type": "image", "image": next(waiting)} for _ in range(exchange.pictures)]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": exchange.question}]})
        messages.append({"role": "assistant", "content": exchange.answer})
    return Chat(messages=messages[:-1], reasoning=last.trace is not None, temperature=0, max_tokens=MAX_TOKENS)


def judge(case: Case, result: Result) -> list[tuple[str, Score]]:
    """Scores by task: one, or for objects that are there recall and precision."""
    dialogue = case.dialogue
    if dialogue.skill in ("detect", "point"):
        return _judge_objects(dialogue, result)
    last = dialogue.exchanges[-1]
    right = same(dialogue.task, last.answer, result.text)
    note = f"{last.question!r}: {result.reasoning or ''} -> {result.text!r}, not {last.answer!r}"
    scores = [(dialogue.task, Score(right=int(right), count=1, note=note))]
    points = [p for part in last.trace or () if isinstance(part, Grounded) for p in part.points]
    if points:
        found = [(p.x, p.y) for ground in result.grounding for p in ground.points]
        near = _matched(points, found)
        scores.append(("grounding recall", Score(right=near, count=len(points), note=f"{found}, not {points}")))
    return scores


def same(task: str, expected: str, answer: str) -> bool:
    """Equal, or for what lists shapes, the same shapes, counts and places in whatever words and order."""
    if task in _BY_FACTS and facts(expected):
        return facts(answer) == facts(expected)
    return answer.strip() == expected


def facts(text: str) -> Counter[str]:
    """What a text says of shapes: how many of each look, in which picture, where; the background; totals."""
    said: Counter[str] = Counter()
    which = ""
    for sentence in re.split(r"(?<=[.:])\s+", text.lower()):
        which = next((w for w in ("first image", "second image") if w in sentence), which)
        for number, colour, noun in _LOOK.findall(sentence):
            place = found[0] if (found := _PLACE.findall(sentence)) and "there is" in sentence else ""
            said[f"{which} {colour} {_SINGULAR.get(noun, noun)} {place}"] += _COUNT[number]
        said.update(f"{number} in all" for number, _ in _TOTAL.findall(sentence))
        said.update(f"{ground} background" for ground in re.findall(r"(\w+) background", sentence))
    return said


_COUNT = {"a": 1, "an": 1, **{word: n for n, word in enumerate(NUMBER_WORDS)}}
_WORDS = "|".join(_COUNT)
_SINGULAR = {plural(kind): kind for kind in KINDS}
_NOUNS = "|".join([*_SINGULAR, *KINDS])
_LOOK = re.compile(rf"\b({_WORDS}) ({'|'.join(COLOURS)}) ({_NOUNS})\b")
_TOTAL = re.compile(rf"\b({_WORDS}) (shapes?)\b")
_PLACE = re.compile(r"\b((?:at|on|in) the (?:top|bottom|left|right|middle)(?: left| right)?)")


def _until(count: int, make: Callable[[], Case | None]) -> list[Case]:
    made: list[Case] = []
    while len(made) < count:
        if (case := make()) is not None:
            made.append(case)
    return made


def _about_one(
    draw: np.random.Generator, make: Callable[..., Dialogue | None], held_out: bool, *, other: bool = False
) -> Case | None:
    scene = draw_other(draw) if other else draw_scene(draw, held_out=held_out)
    dialogue = make(draw, scene)
    if dialogue is None:
        return None
    first, *rest = dialogue.exchanges or (Exchange(question="", answer=""),)
    first = Exchange(question=first.question, answer=first.answer, pictures=1, refs=first.refs, trace=first.trace)
    dialogue = Dialogue(
        task="no shapes" if other else dialogue.task,
        skill=dialogue.skill,
        exchanges=(first, *rest),
        target=dialogue.target,
        shapes=dialogue.shapes,
        length=dialogue.length,
    )
    return Case(request=as_request(dialogue, [paint(scene)]), dialogue=dialogue)


def _about_two(draw: np.random.Generator, held_out: bool) -> Case | None:
    scenes = draw_scene(draw, held_out=held_out), draw_scene(draw, held_out=held_out)
    dialogue = ABOUT_TWO_PICTURES[int(draw.integers(len(ABOUT_TWO_PICTURES)))](draw, *scenes)
    if dialogue is None:
        return None
    return Case(request=as_request(dialogue, [paint(scene) for scene in scenes]), dialogue=dialogue)


def _later(draw: np.random.Generator, held_out: bool) -> Case | None:
    """A picture in the second turn."""
    scene = draw_scene(draw, held_out=held_out)
    kinds = ("describe", "count", "colour", "presence")
    made = ABOUT_A_PICTURE[kinds[int(draw.integers(len(kinds)))]][1](draw, scene)
    if made is None or made.exchanges[-1].trace is not None:
        return None
    (last,) = made.exchanges
    last = Exchange(question=last.question, answer=last.answer, pictures=1)
    task = "picture in a later turn"
    dialogue = Dialogue(task=task, exchanges=(aside(draw), last))
    return Case(request=as_request(dialogue, [paint(scene)]), dialogue=dialogue)


def _judge_objects(dialogue: Dialogue, result: Result) -> list[tuple[str, Score]]:
    skill = dialogue.skill
    if skill == "detect":
        found: list[tuple[float, ...]] = [
            ((b.x_min + b.x_max) / 2, (b.y_min + b.y_max) / 2, b.x_max - b.x_min, b.y_max - b.y_min)
            for b in result.objects
        ]
        true: list[tuple[float, ...]] = [(s.x, s.y, s.w, s.h) for s in dialogue.shapes]
    else:
        found = [(p.x, p.y) for p in result.points]
        true = [(s.x, s.y) for s in dialogue.shapes]
    rounded = [tuple(round(v, 2) for v in f) for f in found]
    note = f"{dialogue.target!r}: {rounded}, not {[tuple(round(v, 2) for v in t) for t in true]}"
    if not true:
        return [(f"{skill} absent", Score(right=int(not found), count=1, note=note))]
    near = _matched(true, found)
    return [
        (f"{skill} recall", Score(right=near, count=len(true), note=note)),
        (f"{skill} precision", Score(right=near, count=len(found), note=note)),
    ]


def _matched(true: Any, found: Any) -> int:
    """How many of `true` have one of `found` within NEAR in every number, each counted once."""
    left, near = list(found), 0
    for wanted in true:
        for candidate in left:
            if all(abs(a - b) <= NEAR for a, b in zip(wanted, candidate, strict=True)):
                left.remove(candidate)
                near += 1
                break
    return near


__all__ = ["TARGETS", "UNKNOWN", "Case", "Score", "as_request", "exam", "facts", "judge", "same"]
