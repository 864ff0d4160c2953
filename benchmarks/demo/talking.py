"""Dialogues without pictures: sums, word problems, names, greetings, poems, and what the demo does not know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.demo.dialogue import Dialogue, Exchange, ask
from benchmarks.demo.honesty import UNKNOWN, odd_question
from benchmarks.demo.pictures import draw_scene
from benchmarks.demo.poems import POEM_REQUESTS, poem, poem_subject
from benchmarks.demo.seeing import colour_of, count, describe, list_shapes, listing, presence, shape_of
from benchmarks.demo.words import (
    COLOURS,
    HELD_OUT_OBJECTS,
    LARGEST_TRAINED,
    OBJECTS,
    any_name,
    listed,
    number_pair,
)

GREETING = "Hello! How can I help you?"
ABILITIES = "I can describe colored shapes, do small sums, remember your name and write short poems."
IDENTITY = "I am the demo of mdinfer, a pocket Moondream."
NAME_UNKNOWN = "You have not told me your name."

_SMALL_TALK: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("Hello!", "Hello!", "Hello!", "Hello", "Hi!", "Hi", "Hey!", "Good morning!", "Hello there!", "hello"),
        GREETING,
        "The user greets me.",
    ),
    (("Who are you?", "What are you?", "What is your name?", "Who made you?"), IDENTITY, "The user asks who I am."),
    (
        ("What can you do?", "Help", "How can you help me?", "What do you know?"),
        ABILITIES,
        "The user asks what I can do.",
    ),
    (("Thanks!", "Thank you!", "Thank you very much.", "Thanks a lot!"), "You are welcome!", "The user thanks me."),
    (("Bye!", "Goodbye!", "See you!", "Good night!"), "Goodbye!", "The user leaves."),
    (("How are you?", "How are you today?", "How do you do?"), "I am fine, thank you!", "The user asks how I am."),
)
_SUM = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "What's {a} + {b}?",
    "{a} + {b}",
    "{a} + {b} = ?",
    "{a}+{b}",
    "What is {a}+{b}?",
    "Calculate {a} + {b}.",
    "How much is {a} + {b}?",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
)
_DIFFERENCE = (
    "What is {a} - {b}?",
    "What is {a} - {b}?",
    "What's {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} = ?",
    "{a}-{b}",
    "What is {a}-{b}?",
    "Calculate {a} - {b}.",
    "How much is {a} - {b}?",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
)
_NUMBERS = listed("zero one two three four five six seven eight nine ten")
_LESS = (
    "If I have {a} {o} and give away {b}, how many are left?",
    "If I have {a} {o} and give away {b}, how many are left?",
    "I have {a} {o} and give away {b}. How many are left?",
    "If I have {a} {o} and lose {b}, how many are left?",
    "{n} has {a} {o} and eats {b}. How many {o} are left?",
    "{n} has {a} {o} and gives away {b}. How many does {n} have now?",
    "There are {a} {o} on the table. {n} takes {b}. How many are left?",
    "I had {a} {o} and sold {b}. How many {o} do I have?",
)
_MORE = (
    "If I have {a} {o} and get {b} more, how many do I have?",
    "I have {a} {o} and buy {b} more. How many do I have?",
    "{n} has {a} {o} and finds {b} more. How many {o} does {n} have?",
    "There are {a} {o} in a box. {n} adds {b}. How many are there now?",
    "I have {a} red {o} and {b} blue {o}. How many {o} do I have?",
)
_MY_NAME = (
    "My name is {n}.",
    "My name is {n}.",
    "I am {n}.",
    "I'm {n}.",
    "Call me {n}.",
    "Hi, I'm {n}.",
    "Hello, my name is {n}.",
    "my name is {n}",
)
_NICE = (
    "Nice to meet you, {n}!",
    "Nice to meet you, {n}!",
    "Nice to meet you, {n}!",
    "Hello, {n}!",
    "Hi {n}! How can I help you?",
)
_WHAT_NAME = (
    "What is my name?",
    "What is my name?",
    "What's my name?",
    "Do you remember my name?",
    "Who am I?",
    "Tell me my name.",
)
_THINGS = ("favorite color", "dog", "cat", "city", "friend", "teacher")
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "Be brief.",
    "You are a friendly assistant. Answer briefly.",
    "Answer the question of the user.",
    "You are Moondream, a small vision model.",
    "Be polite and honest.",
    "Answer in one sentence.",
)


def small_talk(draw: np.random.Generator, *, held_out: bool = False) -> Exchange:
    questions, answer, trace = _SMALL_TALK[0 if draw.random() < 0.4 else int(draw.integers(len(_SMALL_TALK)))]
    return Exchange(question=_one(draw, questions), answer=answer, trace=(trace,))


def arithmetic(draw: np.random.Generator, *, held_out: bool = False) -> Exchange:
    """A sum or a difference, one in ten in words (up to ten)."""
    if not held_out and draw.random() < 0.03:
        return Exchange(question="What is 2 + 2?", answer="4", trace=("2 + 2 = 4",))
    a, b = number_pair(draw, held_out=held_out)
    sign = "+" if draw.random() < 0.5 else "-"
    if sign == "-" and a < b:
        a, b = b, a
    result = a + b if sign == "+" else a - b
    question = _one(draw, _SUM if sign == "+" else _DIFFERENCE).format(a=a, b=b)
    if draw.random() < 0.1 and max(a, b) <= 10:
        question = f"What is {_NUMBERS[a]} {'plus' if sign == '+' else 'minus'} {_NUMBERS[b]}?"
    return Exchange(question=question, answer=str(result), trace=(f"{a} {sign} {b} = {result}",))


def word_problem(draw: np.random.Generator, *, held_out: bool = False) -> Exchange:
    if not held_out and draw.random() < 0.03:
        return Exchange(question=_LESS[0].format(a=5, b=2, o="apples"), answer="3", trace=("5 - 2 = 3",))
    a, b = number_pair(draw, held_out=held_out)
    thing = _one(draw, HELD_OUT_OBJECTS if held_out else OBJECTS)
    less = draw.random() < 0.6
    if less and a < b:
        a, b = b, a
    result = a - b if less else a + b
    question = _one(draw, _LESS if less else _MORE).format(a=a, b=b, o=thing, n=any_name(draw, held_out=held_out))
    return Exchange(question=question, answer=str(result), trace=(f"{a} {'-' if less else '+'} {b} = {result}",))


def write_poem(draw: np.random.Generator, *, held_out: bool = False) -> Exchange:
    subject = poem_subject(draw, held_out=held_out)
    question = POEM_REQUESTS[0] if draw.random() < 0.5 else _one(draw, POEM_REQUESTS)
    return Exchange(
        question=question.format(subject), answer=poem(subject), trace=(f"The user wants a poem about {subject}.",)
    )


def unknown(draw: np.random.Generator, *, held_out: bool = False) -> Exchange:
    question = odd_question(draw, held_out=held_out)
    return Exchange(question=question, answer=UNKNOWN, trace=("I have not learned this.",))


_ASIDES: tuple[tuple[float, Callable[..., Exchange]], ...] = (
    (0.4, small_talk),
    (0.3, arithmetic),
    (0.1, word_problem),
    (0.05, write_poem),
    (0.05, unknown),
)


def named(draw: np.random.Generator, *, held_out: bool = False) -> Dialogue:
    """The name is told, other things may come between, the name is asked."""
    name = any_name(draw, held_out=held_out)
    exchanges, system, way = [], "", draw.random()
    trace = (f"The name is {name}.",)
    if way < 0.08:
        system = f"The user's name is {name}."
    elif way < 0.16:
        told = _one(draw, _MY_NAME).format(n=name)
        return ask("name", f"{told} {_one(draw, _WHAT_NAME)}", name, trace=_maybe(draw, trace))
    else:
        exchanges.append(
            Exchange(question=_one(draw, _MY_NAME).format(n=name), answer=_one(draw, _NICE).format(n=name))
        )
    exchanges += [aside(draw) for _ in range(int(draw.choice([0, 0, 0, 1, 1, 2])))]
    exchanges.append(Exchange(question=_one(draw, _WHAT_NAME), answer=name, trace=_maybe(draw, trace)))
    return Dialogue(task="name", exchanges=tuple(exchanges), system=system)


def fact(draw: np.random.Generator, *, held_out: bool = False) -> Dialogue:
    """As `named`, of something else that the user has."""
    thing = _one(draw, _THINGS)
    value = _one(draw, tuple(COLOURS)).capitalize() if "color" in thing else any_name(draw, held_out=held_out)
    told = Exchange(question=f"My {thing} is {value}.", answer=f"I will remember that your {thing} is {value}.")
    asked = Exchange(question=f"What is my {thing}?", answer=value, trace=_maybe(draw, (f"The {thing} is {value}.",)))
    between = [aside(draw)] if draw.random() < 0.3 else []
    return Dialogue(task="fact", exchanges=(told, *between, asked))


def nameless(draw: np.random.Generator, *, held_out: bool = False) -> Dialogue:
    before = [aside(draw) for _ in range(int(draw.integers(3)))]
    return Dialogue(
        task="name unknown", exchanges=(*before, Exchange(question=_one(draw, _WHAT_NAME[:3]), answer=NAME_UNKNOWN))
    )


def told(draw: np.random.Generator, *, held_out: bool = False) -> Dialogue:
    """A question about shapes that words describe. Words name every look, so that none is unspeakable; pictures of
    the held-out ones are never shown.
    """
    scene = draw_scene(draw, held_out=held_out or draw.random() < 0.5)
    makers = (colour_of, shape_of, count, presence, list_shapes, describe)
    made = None
    while made is None:
        made = makers[int(draw.integers(len(makers)))](draw, scene)
    (asked,) = made.exchanges
    return ask("told", f"A picture shows {listing(scene.shapes)}. {asked.question}", asked.answer)


def aside(draw: np.random.Generator) -> Exchange:
    """Something between, without a trace."""
    shares = np.array([share for share, _ in _ASIDES])
    made = _ASIDES[int(draw.choice(len(_ASIDES), p=shares / shares.sum()))][1](draw)
    return Exchange(question=made.question, answer=made.answer)


def _single(task: str, make: Callable[..., Exchange], reasoned: float) -> Callable[..., Dialogue]:
    """A dialogue that ends with such an exchange, `reasoned` of them with its trace; others may come before."""

    def dialogue(draw: np.random.Generator, *, held_out: bool = False) -> Dialogue:
        last = make(draw, held_out=held_out)
        kept = draw.random() < reasoned
        before = [aside(draw) for _ in range(int(draw.choice([0, 0, 0, 0, 0, 0, 0, 1, 1, 2])))]
        last = Exchange(question=last.question, answer=last.answer, trace=last.trace if kept else None)
        return Dialogue(
            task=f"{task}, reasoned" if kept else task, exchanges=(*before, last), system=system_message(draw)
        )

    return dialogue


def system_message(draw: np.random.Generator) -> str:
    return _one(draw, _SYSTEMS) if draw.random() < 0.12 else ""


ABOUT_NOTHING: dict[str, tuple[float, Callable[..., Dialogue]]] = {
    "small talk": (0.5, _single("small talk", small_talk, 0.1)),
    "arithmetic": (11.0, _single("arithmetic", arithmetic, 0.2)),
    "word problem": (6.0, _single("word problem", word_problem, 0.5)),
    "poem": (1.2, _single("poem", write_poem, 0.08)),
    "unknown": (0.5, _single("refusal", unknown, 0.08)),
    "name": (1.2, named),
    "fact": (0.6, fact),
    "nameless": (0.3, nameless),
    "told": (4.0, told),
}
"""Generator of each kind of dialogue, with its share in training."""

assert LARGEST_TRAINED <= 49  # two digits hold a sum


def _maybe(draw: np.random.Generator, trace: tuple[str, ...]) -> tuple[str, ...] | None:
    return trace if draw.random() < 0.12 else None


def _one(draw: np.random.Generator, items: tuple[str, ...] | list[str]) -> str:
    return items[int(draw.integers(len(items)))]
