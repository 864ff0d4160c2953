"""What the demo's world is made of, and what of it training never sees.

Splits are by construction: a name, a pair of numbers, a look (colour and shape, as pictures show it) or an object of a
word problem is held out by a rule on itself, so that no list of seen examples is needed.
"""

from __future__ import annotations

import zlib

import numpy as np


def listed(text: str) -> tuple[str, ...]:
    """The words of a text; an underscore stands for a space within one."""
    return tuple(word.replace("_", " ") for word in text.split())


KINDS = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (222, 32, 38),
    "orange": (250, 140, 20),
    "yellow": (240, 218, 30),
    "green": (30, 160, 60),
    "blue": (36, 84, 220),
    "purple": (140, 48, 170),
}
LOOKS = tuple((colour, kind) for colour in COLOURS for kind in KINDS)
HELD_OUT_LOOKS = frozenset({("purple", "star"), ("orange", "cross"), ("yellow", "triangle"), ("green", "square")})
BACKGROUNDS = ("plain", "noisy", "gradient")
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")

LARGEST_NUMBER = 20  # of a sum or a difference
LARGEST_TRAINED = 49  # of half of those in training: too many pairs to know by heart, so that it learns to carry

NAMES = listed(
    "Alice Bob Carol David Emma Frank Grace Henry Isabel Jack Kate Liam Maria Noah Olivia Paul Quinn Rosa Sam Tom "
    "Ursula Victor Wendy Xavier Yara Zoe Anna Ben Clara Daniel Eva Felix Hannah Ivan Julia Kevin Laura Max Nina Oscar "
    "Peter Ruth Simon Tina Vera Walter Lucy Mark Sarah John Mary James Linda Chen Wei Aisha Omar Priya Ravi Yuki"
)
HELD_OUT_NAMES = listed(
    "Martin Sophie Gustav Beatrice Ahmed Lena Pedro Naomi Hugo Miriam Jonas Elena Cora Dmitri Freya Kenji"
)

OBJECTS = listed(
    "apples oranges pears books pens coins balls cups stamps cards cookies candies flowers stones toys eggs keys hats "
    "bananas lemons boxes bottles stickers buttons pencils chairs cakes tickets birds fish"
)
HELD_OUT_OBJECTS = listed("marbles shells plums spoons candles nuts ribbons beads")

_ONSETS = listed("b d f g h j k l m n p r s t v w z br dr fl gr kr pl sh st th tr")
_VOWELS = listed("a e i o u ai ea oo")
_CODAS = ("", "", "", *listed("l m n r s t x k"))


def held_out_name(name: str) -> bool:
    """A tenth of all made-up names, and HELD_OUT_NAMES."""
    return name in HELD_OUT_NAMES or (name not in NAMES and zlib.crc32(name.encode()) % 10 == 0)


def held_out_pair(a: int, b: int) -> bool:
    """One pair of numbers in eleven, whichever way round."""
    return (3 * min(a, b) + 5 * max(a, b)) % 11 == 7


def made_up_name(draw: np.random.Generator, *, held_out: bool = False) -> str:
    """Two or three syllables, capitalised."""
    while True:
        parts = [_pick(draw, _ONSETS) + _pick(draw, _VOWELS) + _pick(draw, _CODAS) for _ in range(draw.integers(1, 4))]
        name = "".join(parts).capitalize()
        if 3 <= len(name) <= 10 and held_out_name(name) is held_out:
            return name


def any_name(draw: np.random.Generator, *, held_out: bool = False) -> str:
    """One of the list, or (four times in five) a made-up one."""
    if draw.random() < 0.8:
        return made_up_name(draw, held_out=held_out)
    return _pick(draw, HELD_OUT_NAMES if held_out else NAMES)


def number_pair(draw: np.random.Generator, *, held_out: bool = False) -> tuple[int, int]:
    """Two numbers of the asked split: from 0 to LARGEST_NUMBER, or half of what is seen to LARGEST_TRAINED."""
    largest = LARGEST_TRAINED if not held_out and draw.random() < 0.5 else LARGEST_NUMBER
    while True:
        a, b = (int(n) for n in draw.integers(0, largest + 1, 2))
        if held_out_pair(a, b) is held_out:
            return a, b


def plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def joined(parts: list[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _pick(draw: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(draw.integers(len(items)))]
