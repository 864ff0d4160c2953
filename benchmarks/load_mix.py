"""Requests of all kinds, as many clients of one engine send them, with pictures drawn from a seed."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

import mdinfer
from mdinfer.request import Request

QUESTIONS = (
    "What is in this image?",
    "How many bars are there?",
    "Which bar is the highest?",
    "What colour is the first bar?",
    "Is there a red bar?",
    "What does the chart show?",
)


def chart(seed: int, size: tuple[int, int] = (850, 600)) -> Image.Image:
    """A bar chart of random values; the same for the same seed."""
    draw = np.random.default_rng(seed)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    width, height = size
    count = int(draw.integers(3, 9))
    step = width / (count + 1)
    for i in range(count):
        top = height * (0.9 - 0.75 * float(draw.random()))
        colour = tuple(int(c) for c in draw.integers(0, 220, 3))
        pen.rectangle((step * (i + 0.6), top, step * (i + 1.3), height * 0.9), fill=colour)
    pen.line((0.04 * width, 0.9 * height, 0.98 * width, 0.9 * height), fill="black", width=max(1, height // 200))
    pen.line((0.04 * width, 0.05 * height, 0.04 * width, 0.9 * height), fill="black", width=max(1, height // 200))
    return picture


def png(picture: Image.Image) -> bytes:
    """As a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def mixed_requests(count: int, seed: int, *, tokens: int, size: tuple[int, int] = (850, 600)) -> list[Request]:
    """Half of them ask about a picture, 1.66 a picture; the others chat. Answers have up to `tokens` tokens."""
    draw = np.random.default_rng(seed)
    made: list[Request] = []
    pictures = [chart(seed * 1000 + i, size) for i in range(max(1, round(count / 2 / 1.66)))]
    for i in range(count):
        limit = int(draw.integers(max(1, tokens // 3), tokens + 1))
        picture, question = pictures[i // 2 % len(pictures)], QUESTIONS[int(draw.integers(len(QUESTIONS)))]
        if i % 2:
            text = f"My number is {int(draw.integers(1000))}. {question}"
            made.append(mdinfer.Query(question=text, temperature=0, max_tokens=limit))
        elif i % 8 == 0:
            made.append(mdinfer.Caption(image=picture, length="short", temperature=0.5, seed=i, max_tokens=limit))
        elif i % 8 == 4:
            made.append(mdinfer.Detect(image=picture, object="bar", max_objects=max(1, limit // 3)))
        else:
            made.append(mdinfer.Query(image=picture, question=question, temperature=0, max_tokens=limit))
    return made


def endless(engine: mdinfer.Engine) -> None:
    """Have no answer end before its limit, so that the work does not depend on what the weights say."""
    model = engine._loop._runner.model
    model.text.lm_head.bias[engine.config.tokenizer.eos_id] = -1e4
