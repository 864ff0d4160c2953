"""The demo's tokenizer: byte-level BPE of 1024 tokens, learned from the generator's own sentences.

Capitals and digits stand alone, so that a name is spelled alike with and without a space before it, and a number is
read digit by digit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from benchmarks.demo.dialogue import Dialogue
from benchmarks.demo.pictures import draw_scene
from benchmarks.demo.seeing import ABOUT_A_PICTURE
from benchmarks.demo.talking import ABOUT_NOTHING
from benchmarks.demo.words import HELD_OUT_NAMES, HELD_OUT_OBJECTS

SKILL_WORDS = ("query", "caption", "detect", "point", "short", "normal", "long")
VOCABULARY = 1024
_CONTROL = 16


def build_tokenizer(seed: int = 0, sentences: int = 30_000) -> tokenizers.Tokenizer:
    """The 16 control tokens, the 256 bytes, then the merges learned."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Lu}"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", *(f"<|md_reserved_{i}|>" for i in range(_CONTROL - 1))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_sentences(np.random.default_rng(seed), sentences), trainer)
    return bpe


def _sentences(draw: np.random.Generator, count: int) -> Iterator[str]:
    words = [*SKILL_WORDS, *(f" {name}" for name in HELD_OUT_OBJECTS), *HELD_OUT_NAMES]
    talk, see = list(ABOUT_NOTHING.values()), list(ABOUT_A_PICTURE.values())
    for i in range(count):
        if i % 20 == 0:
            yield from words[:7]
        if i % 100 == 0:
            yield from words[7 : 7 + len(HELD_OUT_OBJECTS)]
        if i % 2:
            made: Dialogue | None = talk[int(draw.integers(len(talk)))][1](draw)
        else:
            made = see[int(draw.integers(len(see)))][1](draw, draw_scene(draw))
        if made is None:
            continue
        yield " " + made.target
        for exchange in made.exchanges:
            yield exchange.question
            yield exchange.answer
            yield from (part if isinstance(part, str) else part.text for part in exchange.trace or ())
