"""Training rows say to the model what the engine says to it."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

from benchmarks.demo.batches import NAMELESS_PICTURES, BatchMaker
from benchmarks.demo.dialogue import Dialogue, Exchange, Grounded, ask
from benchmarks.demo.exam import as_request
from benchmarks.demo.forward import row_mask
from benchmarks.demo.pictures import Shape
from benchmarks.demo.rows import RowBuilder, Speller
from mdinfer.config import ModelConfig
from mdinfer.kernels import TokenKind
from mdinfer.loading import DEMO_DIRECTORY
from mdinfer.skills import Context, compile_request
from mdinfer.tokenizer import Tokenizer

CONFIG = ModelConfig.from_file(DEMO_DIRECTORY / "config.json")
WORDS = tokenizers.Tokenizer.from_file(str(DEMO_DIRECTORY / "tokenizer.json"))
CONTEXT = Context(
    config=CONFIG,
    tokenizer=Tokenizer.from_file(DEMO_DIRECTORY / "tokenizer.json", CONFIG.tokenizer, CONFIG.text.vocab_size),
    max_context=4096,
)
CIRCLE = Shape(kind="circle", colour="red", x=0.25, y=0.5, w=0.2, h=0.3)
DIALOGUES = {
    "text": ask("t", "What is 2 + 2?", "4"),
    "picture": ask("t", "What is in this image?", "A red circle.", pictures=1),
    "two pictures": ask("t", "Which image has more shapes?", "The first image.", pictures=2),
    "point": ask("t", "What is this?", "A red circle.", pictures=1, refs=((0.25, 0.5),)),
    "box": ask("t", "What is this?", "A red circle.", pictures=1, refs=((0.125, 0.25, 0.375, 0.75),)),
    "chat": Dialogue(
        task="t",
        system="Be brief.",
        exchanges=(
            Exchange(question="My name is Alice.", answer="Hello, Alice!"),
            Exchange(question="What is my name?", answer="Alice", trace=("The name is Alice.",)),
        ),
    ),
    "caption": Dialogue(task="t", skill="caption", length="long", exchanges=(Exchange(question="", answer="A."),)),
    "detect": Dialogue(task="t", skill="detect", target="red circle", shapes=(CIRCLE,)),
    "point at": Dialogue(task="t", skill="point", target="red circle", shapes=(CIRCLE,)),
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_prompts_are_the_engine_s(name: str) -> None:
    dialogue = DIALOGUES[name]
    pictures = {"text": 0, "chat": 0, "two pictures": 2}.get(name, 1)
    speller = Speller(WORDS, CONFIG)
    stream, body = speller.opening(pictures), speller.body(dialogue)
    builder = RowBuilder(1)
    builder.begin(stream)
    builder.segment(body)
    rows = builder.finish()
    prompt = compile_request(as_request(dialogue, [Image.new("RGB", (8, 8))] * pictures), CONTEXT).prompt
    n = len(prompt)
    assert rows.tokens[0, :n].tolist() == prompt.tokens.tolist()
    assert rows.kinds[0, :n].tolist() == prompt.kinds.tolist()
    assert rows.visible[0, :n].tolist() == prompt.visible.tolist()
    np.testing.assert_allclose(rows.values[0, :n], prompt.values, rtol=1e-6)
    assert rows.position[0, :n].tolist() == list(range(n))
    if name != "chat":  # whose first answer, learned too, is part of the prompt
        assert (rows.target[0, : n - 1] == -1).all()
    assert rows.target[0, n - 1] == rows.tokens[0, n]


def test_what_a_trace_becomes() -> None:
    stream = Speller(WORDS, CONFIG).body(
        ask("t", "How many?", "1", trace=("I see ", Grounded("one circle", ((0.25, 0.5),)), "."))
    )
    at = stream.tokens.index(CONFIG.tokenizer.thinking_id)
    learned = [(t, k, v) for t, k, v in zip(stream.tokens, stream.kinds, stream.values, strict=True)][at + 1 :]
    assert all(stream.learned[at + 1 :])
    assert not any(stream.learned[: at + 1])
    controls = [token for token, _, _ in learned if token < 16]
    assert controls == [7, 5, 5, 9, 3, 0]
    assert [v[0] for _, k, v in learned if k == TokenKind.COORD] == [0.25, 0.5]


def test_what_sees_what() -> None:
    """Segments see their prefix and themselves, never each other; a picture sees itself whole."""
    speller = Speller(WORDS, CONFIG)
    builder = RowBuilder(1)
    prefix = speller.opening(1)
    first, second = speller.body(DIALOGUES["detect"]), speller.body(DIALOGUES["caption"])
    builder.begin(prefix)
    builder.segment(first)
    builder.segment(second)
    rows = builder.finish()
    mask = row_mask(*(torch.from_numpy(a) for a in (rows.group, rows.segment, rows.position, rows.visible)))[0, 0] == 0
    p, a, b = len(prefix), len(prefix) + len(first), len(prefix) + len(first) + len(second)
    assert mask[:p, :p].all()
    assert not mask[:p, p:].any()
    for start, end in ((p, a), (a, b)):
        assert mask[start:end, :p].all()
        assert (mask[start:end, start:end] == torch.ones(end - start, end - start).tril().bool()).all()
    assert not mask[a:b, p:a].any()
    assert not mask[:b, b:].any()


def test_batches_depend_on_seed_and_number_alone() -> None:
    one, other = (BatchMaker(WORDS, CONFIG, {}).batch(3, 5) for _ in range(2))
    assert one.rows is not None
    assert other.rows is not None
    assert (one.rows.tokens == other.rows.tokens).all()
    assert (one.pictures.crops == other.pictures.crops).all()
    assert (one.rows.group >= 0).mean() > 0.9
    pictures = int((one.rows.kinds == TokenKind.IMAGE).sum()) // CONFIG.vision.positions
    assert pictures == len(one.pictures.tilings) - NAMELESS_PICTURES
    assert ((one.rows.target >= 0) == (one.rows.weight > 0)).all()
