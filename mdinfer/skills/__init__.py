"""Skills: what each request becomes (a prompt, a decoding state) and what its tokens mean.

A skill is data and small pure functions; the engine drives them, the scheduler and the runner never see them.
"""

from __future__ import annotations

from mdinfer.errors import RequestError
from mdinfer.request import Caption, Chat, Detect, Point, Query, Request
from mdinfer.skills import caption, chat, detect, point, query
from mdinfer.skills.compiled import Compiled, Context

__all__ = ["Compiled", "Context", "compile_request"]


def compile_request(request: Request, context: Context) -> Compiled:
    """Raises RequestError (or a kind of it) where the request cannot be served by this model."""
    match request:
        case Query():
            return query.compile_query(request, context)
        case Caption():
            return caption.compile_caption(request, context)
        case Detect():
            return detect.compile_detect(request, context)
        case Point():
            return point.compile_point(request, context)
        case Chat():
            return chat.compile_chat(request, context)
    raise RequestError(f"a request is a Query, Caption, Detect, Point or Chat, found {type(request).__name__}")
