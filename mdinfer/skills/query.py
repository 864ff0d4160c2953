"""Query: prefix, spatial references, question, then the opener of the answer or of a reasoning trace."""

from __future__ import annotations

from mdinfer.config import TokenConfig
from mdinfer.decode_table import State
from mdinfer.request import Query
from mdinfer.skills.compiled import Compiled, Context, Picture, sampling_params
from mdinfer.skills.text_output import TextOutput


def compile_query(request: Query, context: Context) -> Compiled:
    tokens = context.config.tokenizer
    prompt = context.prompt()
    if request.image is not None:
        prompt.image()
    prompt.text(tokens.templates.query.prefix)
    for ref in request.spatial_refs:
        prompt.spatial_ref(tuple(ref), tokens.coord_id, tokens.size_id)
    prompt.text(context.encode(request.question)).text(opener(tokens, request.reasoning))
    return Compiled(
        prompt=prompt.build(),
        pictures=() if request.image is None else (Picture(source=request.image),),
        state=State.REASONING if request.reasoning else State.ANSWER,
        sampling=sampling_params(request),
        max_tokens=int(request.max_tokens),
        output=TextOutput.of(request, context, reasoning=request.reasoning),
    )


def opener(tokens: TokenConfig, reasoning: bool) -> tuple[int, ...]:
    """What ends a question: the template's suffix, or the thinking token in its place."""
    return (tokens.thinking_id,) if reasoning else tokens.templates.query.suffix
