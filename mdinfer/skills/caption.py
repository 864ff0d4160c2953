"""Caption: a picture and one of three fixed prompts."""

from __future__ import annotations

from mdinfer.decode_table import State
from mdinfer.request import Caption
from mdinfer.skills.compiled import Compiled, Context, Picture, sampling_params
from mdinfer.skills.text_output import TextOutput


def compile_caption(request: Caption, context: Context) -> Compiled:
    templates = context.config.tokenizer.templates
    ids = {
        "short": templates.caption_short,
        "normal": templates.caption_normal,
        "long": templates.caption_long,
    }[request.length]
    return Compiled(
        prompt=context.prompt().image().text(ids).build(),
        pictures=(Picture(source=request.image),),
        state=State.ANSWER,
        sampling=sampling_params(request),
        max_tokens=int(request.max_tokens),
        output=TextOutput.of(request, context, reasoning=False),
    )
