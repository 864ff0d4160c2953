"""A load shaped like ChartQA's test set, or made of one's own pictures and questions.

Pictures are PNG files of 850 x 600, bar charts drawn from a seed, with 1.66 questions each on average, in an order of
chance. A question is random words: with its template about 45 tokens, of which no two begin alike.

One's own: a folder with pictures (JPEG, PNG, WebP, GIF, BMP), and beside each `name.png` a `name.txt` with a question
a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.load_mix import chart, png
from benchmarks.roofline import QUESTION, QUESTIONS_PER_PICTURE
from mdinfer.config import Template
from mdinfer.request import Query

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_WORDS = (
    *("how", "many", "bars", "of", "the", "chart", "are", "higher", "than", "red", "blue", "what", "is", "sum"),
    *("value", "year", "first", "last", "between", "and"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A picture file and a question about it."""

    picture: bytes
    question: str

    def query(self, tokens: int) -> Query:
        return Query(image=self.picture, question=self.question, temperature=0, max_tokens=tokens)


def drawn(count: int, seed: int, tokens_of: Callable[[str], int], template: Template) -> list[Item]:
    """`count` questions; other seeds give other pictures. `tokens_of` says how many tokens a text has."""
    draw = np.random.default_rng(seed)
    pictures = [png(chart(seed * 100_003 + i)) for i in range(max(1, round(count / QUESTIONS_PER_PICTURE)))]
    length = QUESTION - len(template.prefix) - len(template.suffix)
    order = draw.permutation(count)
    return [
        Item(picture=pictures[int(i) * len(pictures) // count], question=_question(draw, length, tokens_of))
        for i in order
    ]


def _question(draw: np.random.Generator, length: int, tokens_of: Callable[[str], int]) -> str:
    text = str(draw.integers(10_000))
    while True:
        longer = f"{text} {_WORDS[int(draw.integers(len(_WORDS)))]}"
        if tokens_of(longer) > length:
            return text
        text = longer


def from_folder(folder: Path) -> list[Item]:
    """Raises ValueError where there are no questions, or one has no picture."""
    pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES}
    items = []
    for path in sorted(folder.glob("*.txt")):
        questions = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if questions and path.stem not in pictures:
            raise ValueError(f"{path.name} has questions, but there is no picture of that name")
        items += [Item(picture=pictures[path.stem].read_bytes(), question=question) for question in questions]
    if not items:
        raise ValueError(f"{folder} has no questions: put a name.txt, a question a line, beside each name.png")
    return items
