"""Detect: boxes as x, y, size after x, y, size, until the model stops."""

from __future__ import annotations

from typing import Any

from mdinfer.decode_table import State
from mdinfer.request import Detect
from mdinfer.result import Box, Event
from mdinfer.sequence import SampledToken, SamplingParams
from mdinfer.skills.compiled import Compiled, Context, Picture

TOKENS_PER_BOX = 3


def compile_detect(request: Detect, context: Context) -> Compiled:
    template = context.config.tokenizer.templates.detect
    ids = [*template.prefix, *context.encode(" " + request.object), *template.suffix]
    return Compiled(
        prompt=context.prompt().image().text(ids).build(),
        pictures=(Picture(source=request.image),),
        state=State.DETECT_X,
        sampling=SamplingParams(),
        max_tokens=TOKENS_PER_BOX * int(request.max_objects),
        output=BoxOutput(clip=request.clip),
    )


class BoxOutput:
    complete = False

    def __init__(self, *, clip: bool) -> None:
        self._clip = clip
        self._token_ids: list[int] = []
        self._centre: list[float] = []
        self._boxes: list[Box] = []

    def push(self, token: SampledToken) -> Event | None:
        self._token_ids.append(token.token)
        if len(self._centre) < TOKENS_PER_BOX - 1:
            self._centre.append(token.value[0])
            return None
        (x, y), (width, height) = self._centre, token.value
        box = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if self._clip:
            box = Box(*(min(1.0, max(0.0, side)) for side in box))
        self._boxes.append(box)
        self._centre = []
        return Event(box=box)

    def close(self) -> None:
        return None

    def fields(self) -> dict[str, Any]:
        return {"objects": self._boxes, "token_ids": self._token_ids}
