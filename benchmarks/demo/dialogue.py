"""One thing to ask and what to say to it, in the form that both training rows and evaluation requests are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from benchmarks.demo.pictures import Shape

Skill = Literal["query", "caption", "detect", "point"]
Length = Literal["short", "normal", "long"]


@dataclass(frozen=True, slots=True)
class Grounded:
    """A piece of a reasoning trace that points at what it speaks of."""

    text: str
    points: tuple[tuple[float, float], ...]


Trace: TypeAlias = "tuple[str | Grounded, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A user's turn and the answer to it.

    pictures   how many pictures come with the turn
    refs       points (x, y) and boxes (x_min, y_min, x_max, y_max) before the question
    trace      the reasoning, if it was asked for
    """

    question: str
    answer: str
    pictures: int = 0
    refs: tuple[tuple[float, ...], ...] = ()
    trace: Trace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """exchanges for the skill query, of which several make a chat; for the others what their skill needs.

    task      the row of the accuracy table that it counts in
    target    the object to detect or point at
    shapes    where they are, from left to right
    length    of a caption, whose text is `exchanges[0].answer`
    """

    task: str
    skill: Skill = "query"
    exchanges: tuple[Exchange, ...] = ()
    system: str = ""
    target: str = ""
    shapes: tuple[Shape, ...] = ()
    length: Length = "normal"


def ask(task: str, question: str, answer: str, **fields: Any) -> Dialogue:
    """A dialogue of one question."""
    return Dialogue(task=task, exchanges=(Exchange(question=question, answer=answer, **fields),))
