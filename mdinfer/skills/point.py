"""Point: x, y after x, y, until the model stops."""

from __future__ import annotations

from typing import Any

from mdinfer.decode_table import State
from mdinfer.request import Point
from mdinfer.result import XY, Event
from mdinfer.sequence import SampledToken, SamplingParams
from mdinfer.skills.compiled import Compiled, Context, Picture

TOKENS_PER_POINT = 2


def compile_point(request: Point, context: Context) -> Compiled:
    tokens = context.config.tokenizer
    template = tokens.templates.point
    prompt = context.prompt().image().text(template.prefix)
    for ref in request.spatial_refs:
        prompt.spatial_ref(tuple(ref), tokens.coord_id, tokens.size_id)
    prompt.text(context.encode(" " + request.object)).text(template.suffix)
    return Compiled(
        prompt=prompt.build(),
        pictures=(Picture(source=request.image),),
        state=State.POINT_X,
        sampling=SamplingParams(),
        max_tokens=TOKENS_PER_POINT * int(request.max_objects),
        output=PointOutput(),
    )


class PointOutput:
    complete = False

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._x: float | None = None
        self._points: list[XY] = []

    def push(self, token: SampledToken) -> Event | None:
        self._token_ids.append(token.token)
        if self._x is None:
            self._x = token.value[0]
            return None
        point = XY(self._x, token.value[0])
        self._points.append(point)
        self._x = None
        return Event(point=point)

    def close(self) -> None:
        return None

    def fields(self) -> dict[str, Any]:
        return {"points": self._points, "token_ids": self._token_ids}
