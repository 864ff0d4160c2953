"""JSON schemas of OpenAI's published chat completions, models and errors, written from its API reference.

Independent of the server's own OpenAPI document. Objects are closed: a field that OpenAI does not have must be listed
in EXTENSIONS, so that none appears unnoticed.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NULL: Schema = {"type": "null"}
INTEGER: Schema = {"type": "integer", "minimum": 0}
# Ours: the reasoning trace, its grounding and the trace's second name.
EXTENSIONS: dict[str, Schema] = {
    "reasoning": STRING,
    "reasoning_content": STRING,
    "reasoning_details": {"type": "object", "required": ["grounding"]},
}


def closed(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def array(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


BYTES = nullable(array({"type": "integer", "minimum": 0, "maximum": 255}))
TOP_LOGPROB = closed({"token": STRING, "logprob": {"type": "number", "maximum": 0}, "bytes": BYTES})
TOKEN_LOGPROB = closed({**TOP_LOGPROB["properties"], "top_logprobs": array(TOP_LOGPROB, maxItems=20)})
LOGPROBS = nullable(closed({"content": nullable(array(TOKEN_LOGPROB)), "refusal": NULL}))
FINISH_REASON: Schema = {"enum": ["stop", "length"]}

USAGE = closed(
    {
        "prompt_tokens": INTEGER,
        "completion_tokens": INTEGER,
        "total_tokens": INTEGER,
        "prompt_tokens_details": closed({"cached_tokens": INTEGER}, {"image_tokens": INTEGER}),
        "completion_tokens_details": closed({"reasoning_tokens": INTEGER}),
    }
)
ENVELOPE: dict[str, Schema] = {
    "id": {"type": "string", "pattern": "^chatcmpl-"},
    "created": {"type": "integer", "minimum": 1_600_000_000},
    "model": STRING,
    "system_fingerprint": STRING,
}
MESSAGE = closed({"role": {"const": "assistant"}, "content": nullable(STRING), "refusal": NULL}, EXTENSIONS)
COMPLETION = closed(
    {
        **ENVELOPE,
        "object": {"const": "chat.completion"},
        "choices": array(
            closed({"index": INTEGER, "message": MESSAGE, "logprobs": LOGPROBS, "finish_reason": FINISH_REASON}),
            minItems=1,
        ),
        "usage": USAGE,
    }
)
DELTA = closed({}, {"role": {"const": "assistant"}, "content": STRING, **EXTENSIONS})
CHUNK = closed(
    {
        **ENVELOPE,
        "object": {"const": "chat.completion.chunk"},
        "choices": array(
            closed(
                {"index": INTEGER, "delta": DELTA, "logprobs": LOGPROBS, "finish_reason": nullable(FINISH_REASON)},
            ),
        ),
    },
    {"usage": nullable(USAGE)},
)
MODEL = closed({"id": STRING, "object": {"const": "model"}, "created": INTEGER, "owned_by": STRING})
MODEL_LIST = closed({"object": {"const": "list"}, "data": array(MODEL)})
ERROR = closed(
    {"error": closed({"message": STRING, "type": STRING, "param": nullable(STRING), "code": nullable(STRING)})}
)


def check(schema: Schema, value: object) -> None:
    """Fails with the place and the fault where `value` does not fit."""
    faults = [f"{fault.json_path}: {fault.message}" for fault in Draft202012Validator(schema).iter_errors(value)]
    assert not faults, faults


def check_chat_stream(events: list[Any]) -> None:
    """What holds of a whole stream, beyond each chunk's shape."""
    *chunks, last = events
    if isinstance(last, dict):
        check(ERROR, last)
    else:
        assert last == "[DONE]"
    for chunk in chunks:
        check(CHUNK, chunk)
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) <= 1
    seen: set[int] = set()
    ended: set[int] = set()
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        index = choice["index"]
        assert index not in ended, "nothing follows a choice's finish_reason"
        assert ("role" in choice["delta"]) is (index not in seen), "the role comes first and once"
        seen.add(index)
        if choice["finish_reason"] is not None:
            ended.add(index)
    if last == "[DONE]":
        assert ended == seen != set()
