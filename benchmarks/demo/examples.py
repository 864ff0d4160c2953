"""The examples of the OpenAI page, word for word, and what the demo must answer to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.demo.exam import same
from benchmarks.demo.pictures import draw_scene, paint
from benchmarks.demo.poems import poem
from benchmarks.demo.seeing import listing
from benchmarks.demo.talking import GREETING
from mdinfer.engine import Engine
from mdinfer.request import Chat


def page_examples(seed: int = 7) -> list[tuple[str, list[dict[str, Any]], bool, str | None, str]]:
    """Name, messages, whether with reasoning, the trace, the answer."""
    draw = np.random.default_rng(seed)
    scenes = [draw_scene(draw, least=n, most=n) for n in (3, 2)]
    images = [{"type": "image", "image": paint(scene)} for scene in scenes]
    what = {"type": "text", "text": "What is in this image?"}
    both = f"The first image shows {listing(scenes[0].shapes)}. The second image shows {listing(scenes[1].shapes)}."

    def user(content: object) -> dict[str, Any]:
        return {"role": "user", "content": content}

    alice = [
        user("My name is Alice."),
        {"role": "assistant", "content": "Nice to meet you, Alice!"},
        user("What is my name?"),
    ]
    apples = "If I have 5 apples and give away 2, how many are left?"
    return [
        ("What is 2 + 2?", [user("What is 2 + 2?")], False, None, "4"),
        ("What is my name?", alice, False, None, "Alice"),
        (
            "Write a short poem about the moon.",
            [user("Write a short poem about the moon.")],
            False,
            None,
            poem("the moon"),
        ),
        ("Hello!", [user("Hello!")], False, None, GREETING),
        ("5 apples, with reasoning", [user(apples)], True, "5 - 2 = 3", "3"),
        (
            "What is in this image?",
            [user([images[0], what])],
            False,
            None,
            f"The image shows {listing(scenes[0].shapes)}.",
        ),
        ("two images in a turn", [user([*images, what])], False, None, both),
    ]


def judge_examples(engine: Engine, *, draws: int) -> list[dict[str, Any]]:
    """Each example once greedily and `draws` times at the default temperature; one record each."""
    records = []
    for name, messages, reasoning, trace, answer in page_examples():
        chats = [Chat(messages=messages, reasoning=reasoning, temperature=0, max_tokens=200)]
        chats += [Chat(messages=messages, reasoning=reasoning, seed=seed, max_tokens=200) for seed in range(draws)]
        heard = [(r.reasoning, r.text) for r in engine.generate(chats)]
        wrong = [f"{t!r} {text!r}" for t, text in heard if t != trace or not same("describe", answer, text)]
        records.append({"example": name, "right": len(heard) - len(wrong), "count": len(heard), "mistakes": wrong})
    return records
