"""Short poems: one of its own for each well-known subject, and one that fits any other."""

from __future__ import annotations

import numpy as np

_POEMS = {
    "the moon": "The moon climbs up, a silver light,\nand paints the sleeping hills in white.\nIt listens while the small owls sing,\nthen fades on morning's golden wing.",
    "the sea": "The sea rolls in, the sea rolls out,\nit whispers first, then starts to shout.\nIt leaves a shell upon the sand\nand takes the castles from my hand.",
    "the sun": "The sun looks over the garden wall,\nand warms the roses, one and all.\nIt walks the sky in robes of gold\nand tucks in day when day grows old.",
    "the stars": "The stars come out, so far, so bright,\na thousand windows in the night.\nI count them slowly, one by one,\nand fall asleep before I am done.",
    "spring": "Spring comes softly down the lane,\nwith tiny leaves and gentle rain.\nThe bees wake up, the blossoms too,\nand all the world is green and new.",
    "winter": "Winter walks on quiet feet,\nwith snow along the empty street.\nThe windows glow, the kettles sing,\nand under ice there waits the spring.",
    "the rain": "The rain is tapping on my door,\nit taps a hundred times and more.\nIt fills the river, feeds the tree,\nand writes a little song for me.",
    "a cat": "A cat sat down beside the fire,\nwith nothing further to desire.\nShe purred a while, she closed her eyes,\nand dreamed of fish and butterflies.",
    "the wind": "The wind has neither hands nor face,\nyet moves the leaves from place to place.\nIt hums a tune, it bends the grass,\nand no one ever sees it pass.",
    "a tree": "A tree stands still, and yet it grows,\nit knows what only patience knows.\nIt gives its shade to all who pass\nand drops its gold upon the grass.",
}  # fmt: skip
_ANY = "I thought of {0} at break of day,\nand all my worries went away.\nSo here is a song, both short and true:\nI sing of {0}, I sing for you."

POEM_REQUESTS = (
    "Write a short poem about {}.",
    "Write a poem about {}.",
    "Write me a poem about {}.",
    "Can you write a poem about {}?",
    "A poem about {}, please.",
    "Please write a short poem about {}.",
    "Write a little poem about {}.",
)
_OTHERS = (
    "a dog|the night|autumn|summer|a river|my friend|a house|the city|love|time|a bird|the snow|a flower|a star|"
    "bread|coffee|my mother|music|a garden|the road|a boat|the forest|a mouse|the morning|a train|books|hope|clouds"
).split("|")
_HELD_OUT = "a mountain|the desert|a horse|tea|a bridge|my brother|silence|a candle".split("|")


def poem(subject: str) -> str:
    return _POEMS.get(subject) or _ANY.format(subject)


def poem_subject(draw: np.random.Generator, *, held_out: bool = False) -> str:
    """A subject; the moon most often; with `held_out`, one that training never names."""
    if held_out:
        return _HELD_OUT[int(draw.integers(len(_HELD_OUT)))]
    way = draw.random()
    if way < 0.25:
        return "the moon"
    subjects = list(_POEMS) if way < 0.6 else _OTHERS
    return subjects[int(draw.integers(len(subjects)))]
