"""Short poems: one of its own for each well-known subject, and one that fits any other."""

from __future__ import annotations

import numpy as np

from benchmarks.demo.words import made_up_name

_POEMS = {
    "the moon": (
        "The moon climbs up, a silver light,\n"
        "and paints the sleeping hills in white.\n"
        "It listens while the small owls sing,\n"
        "then fades on morning's golden wing."
    ),
    "the sea": (
        "The sea rolls in, the sea rolls out,\n"
        "it whispers first, then starts to shout.\n"
        "It leaves a shell upon the sand\n"
        "and takes the castles from my hand."
    ),
    "the sun": (
        "The sun looks over the garden wall,\n"
        "and warms the roses, one and all.\n"
        "It walks the sky in robes of gold\n"
        "and tucks in day when day grows old."
    ),
    "the stars": (
        "The stars come out, so far, so bright,\n"
        "a thousand windows in the night.\n"
        "I count them slowly, one by one,\n"
        "and fall asleep before I am done."
    ),
    "spring": (
        "Spring comes softly down the lane,\n"
        "with tiny leaves and gentle rain.\n"
        "The bees wake up, the blossoms too,\n"
        "and all the world is green and new."
    ),
    "winter": (
        "Winter walks on quiet feet,\n"
        "with snow along the empty street.\n"
        "The windows glow, the kettles sing,\n"
        "and under ice there waits the spring."
    ),
    "the rain": (
        "The rain is tapping on my door,\n"
        "it taps a hundred times and more.\n"
        "It fills the river, feeds the tree,\n"
        "and writes a little song for me."
    ),
    "a cat": (
        "A cat sat down beside the fire,\n"
        "with nothing further to desire.\n"
        "She purred a while, she closed her eyes,\n"
        "and dreamed of fish and butterflies."
    ),
    "the wind": (
        "The wind has neither hands nor face,\n"
        "yet moves the leaves from place to place.\n"
        "It hums a tune, it bends the grass,\n"
        "and no one ever sees it pass."
    ),
    "a tree": (
        "A tree stands still, and yet it grows,\n"
        "it knows what only patience knows.\n"
        "It gives its shade to all who pass\n"
        "and drops its gold upon the grass."
    ),
}
_ANY = (
    "I thought of {0} at break of day,\n"
    "and all my worries went away.\n"
    "So here is a song, both short and true:\n"
    "I sing of {0}, I sing for you."
)

POEM_REQUESTS = (
    "Write a short poem about {}.",
    "Write a poem about {}.",
    "Write me a poem about {}.",
    "Can you write a poem about {}?",
    "A poem about {}, please.",
    "Please write a short poem about {}.",
    "Write a little poem about {}.",
)
_OTHERS = [
    "a dog",
    "the night",
    "autumn",
    "summer",
    "a river",
    "my friend",
    "a house",
    "the city",
    "love",
    "time",
    "a bird",
    "the snow",
    "a flower",
    "a star",
    "bread",
    "coffee",
    "my mother",
    "music",
    "a garden",
    "the road",
    "a boat",
    "the forest",
    "a mouse",
    "the morning",
    "a train",
    "books",
    "hope",
    "clouds",
]
_BEFORE = ["", "", "a ", "a ", "the ", "my "]
_HELD_OUT = ["a mountain", "the desert", "a horse", "tea", "a bridge", "my brother", "silence", "a candle"]


def poem(subject: str) -> str:
    return _POEMS.get(subject) or _ANY.format(subject)


def poem_subject(draw: np.random.Generator, *, held_out: bool = False) -> str:
    """A subject: half are made up, of the others the moon comes most often; `held_out`: one never trained."""
    if held_out:
        return _HELD_OUT[int(draw.integers(len(_HELD_OUT)))]
    way = draw.random()
    if way > 0.5:
        name = made_up_name(draw)
        if draw.random() < 0.25:
            return name
        subject = _BEFORE[int(draw.integers(len(_BEFORE)))] + name.lower()
        return subject if subject not in _HELD_OUT else name
    if way < 0.16:
        return "the moon"
    subjects = list(_POEMS) if way < 0.32 else _OTHERS
    return subjects[int(draw.integers(len(subjects)))]
