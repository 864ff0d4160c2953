"""The bodies of requests and answers as JSON Schema, for the OpenAPI document.

What no schema can say (the last message is the user's, a data URL holds a picture) is said in descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from mdinfer.request import MAX_LOGPROBS, MAX_OBJECTS, MAX_STOP_LENGTH, MAX_STOP_STRINGS
from mdinfer.server.messages import MAX_MESSAGES, MAX_PARTS
from mdinfer.server.schema import MAX_CHOICES, MAX_TOKENS

Schema: TypeAlias = dict[str, Any]


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _optional(schema: Schema) -> Schema:
    """Null is as good as leaving it out."""
    return {"anyOf": [schema, {"type": "null"}]}


def _integer(least: int, most: int) -> Schema:
    return _optional({"type": "integer", "minimum": least, "maximum": most})


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, closed: bool = False) -> Schema:
    schema = {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}
    return {**schema, "additionalProperties": False} if closed else schema


def _list(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": items, **bounds}


def _one_of(*values: str | None) -> Schema:
    return {"enum": list(values)}


_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_FRACTION: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_FLAG = _optional({"type": "boolean"})
_TEMPERATURE = _optional({"type": "number", "minimum": 0, "maximum": 2})
_TOP_P = _optional({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
_URL: Schema = {"type": "string", "description": "a base64 data URL of a JPEG, PNG, WebP, GIF or BMP picture"}
_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
_REASONING_EFFORT = _object({}, {"effort": _optional(_TEXT), "enabled": _FLAG})

_PART: Schema = {
    "oneOf": [
        _object({"type": {"const": "text"}, "text": _TEXT}),
        _object({"type": {"const": "image_url"}, "image_url": {"anyOf": [_URL, _object({"url": _URL})]}}),
    ]
}
_MESSAGE = _object(
    {"role": _one_of("system", "developer", "user", "assistant")},
    {"content": {"anyOf": [_TEXT, _list(_PART, most=MAX_PARTS), {"type": "null"}]}},
)

NO_OPS: dict[str, Schema] = {
    "tools": {"const": []},
    "tool_choice": _one_of("none", "auto"),
    "functions": {"const": []},
    "function_call": _one_of("none", "auto"),
    "response_format": {"const": {"type": "text"}},
    "frequency_penalty": {"const": 0},
    "presence_penalty": {"const": 0},
    "logit_bias": {"const": {}},
    "audio": {"type": "null"},
    "modalities": {"const": ["text"]},
    "chat_template": {"type": "null"},
    "chat_template_kwargs": {"type": "null"},
}

_NOTE = "The last message is the user's. Parameters that cannot be obeyed are refused, unknown ones ignored."


def chat_schema(models: Sequence[str]) -> Schema:
    optional = {
        "max_completion_tokens": _integer(1, MAX_TOKENS),
        "max_tokens": _integer(1, MAX_TOKENS),
        "temperature": _TEMPERATURE,
        "top_p": _TOP_P,
        "seed": _integer(-(1 << 63), (1 << 63) - 1),
        "stop": {"anyOf": [_STOP, _list(_STOP, most=MAX_STOP_STRINGS), {"type": "null"}]},
        "n": _integer(1, MAX_CHOICES),
        "reasoning": {"anyOf": [{"type": "boolean"}, _REASONING_EFFORT, {"type": "null"}]},
        "reasoning_effort": _optional(_TEXT),
        "stream": _FLAG,
        "stream_options": _optional(_object({}, {"include_usage": _FLAG})),
        "logprobs": _FLAG,
        "top_logprobs": _integer(0, MAX_LOGPROBS),
        **{name: _optional(schema) for name, schema in NO_OPS.items()},
    }
    required = {"model": _one_of(*models), "messages": _list(_MESSAGE, 1, MAX_MESSAGES)}
    return {**_object(required, optional), "description": _NOTE}


_SAMPLING = {"temperature": _TEMPERATURE, "top_p": _TOP_P, "max_tokens": _integer(1, MAX_TOKENS)}
_SETTINGS = _optional(_object({}, {**_SAMPLING, "max_objects": _integer(1, MAX_OBJECTS)}))
_SPATIAL_REFS = _optional(
    _list({"anyOf": [_list(_FRACTION, 2, 2), _list(_FRACTION, 4, 4)]}, most=MAX_OBJECTS)
    | {"description": "points (x, y) and boxes (x_min, y_min, x_max, y_max)"}
)
_COMMON: dict[str, Schema] = {"model": _optional(_TEXT), "settings": _SETTINGS}
_OBJECTS = {"image_url": _URL, "object": _TEXT}

_POINTS = _list(_list({"type": "number"}, 2, 2))
_GROUNDING = _list(_object({"start_idx": _COUNT, "end_idx": _COUNT, "points": _POINTS}, closed=True))
_FINISH = _one_of("stop", "length")
_BYTES = _optional(_list({"type": "integer", "minimum": 0, "maximum": 255}))
_TOP = _object({"token": _TEXT, "logprob": {"type": "number"}, "bytes": _BYTES}, closed=True)
_LOGPROB = _object(
    {"token": _TEXT, "logprob": {"type": "number"}, "bytes": _BYTES, "top_logprobs": _list(_TOP)}, closed=True
)
_CHOICE = _object(
    {
        "index": _COUNT,
        "message": _object(
            {"role": {"const": "assistant"}, "content": _TEXT, "refusal": {"type": "null"}},
            {"reasoning": _TEXT, "reasoning_details": _object({"grounding": _GROUNDING})},
        ),
        "logprobs": _optional(_object({"content": _list(_LOGPROB), "refusal": {"type": "null"}})),
        "finish_reason": _FINISH,
    },
    closed=True,
)
_USAGE = _object(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": _object({"cached_tokens": _COUNT, "image_tokens": _COUNT}, closed=True),
        "completion_tokens_details": _object({"reasoning_tokens": _COUNT}, closed=True),
    },
    closed=True,
)
_METRICS = _object(
    {
        "input_tokens": _COUNT,
        "output_tokens": _COUNT,
        **dict.fromkeys(("prefill_time_ms", "decode_time_ms", "ttft_ms"), _SECONDS),
    },
    closed=True,
)


def _answer(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return _object({"request_id": _TEXT, **required, "finish_reason": _FINISH, "metrics": _METRICS}, optional)


SCHEMAS: dict[str, Schema] = {
    "ChatCompletion": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "choices": _list(_CHOICE, 1, MAX_CHOICES),
            "usage": _USAGE,
        },
        closed=True,
    ),
    "QueryRequest": _object(
        {"question": _TEXT},
        {"image_url": _optional(_URL), "reasoning": _FLAG, "spatial_refs": _SPATIAL_REFS, "stream": _FLAG, **_COMMON},
    ),
    "CaptionRequest": _object(
        {"image_url": _URL}, {"length": _one_of("short", "normal", "long"), "stream": _FLAG, **_COMMON}
    ),
    "DetectRequest": _object(_OBJECTS, {"spatial_refs": _optional(_list(_NUMBER, most=0)), **_COMMON}),
    "PointRequest": _object(_OBJECTS, {"spatial_refs": _SPATIAL_REFS, **_COMMON}),
    "Answer": _answer({"answer": _TEXT}, {"reasoning": _object({"text": _TEXT, "grounding": _GROUNDING})}),
    "Caption": _answer({"caption": _TEXT}),
    "Boxes": _answer({"objects": _list(_object(dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), _NUMBER)))}),
    "Points": _answer({"points": _list(_object(dict.fromkeys(("x", "y"), _NUMBER)))}),
    "Model": _object({"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT}, closed=True),
    "ModelList": _object({"object": {"const": "list"}, "data": _list(reference("Model"))}, closed=True),
    "Status": _object({"status": _one_of("ok", "ready")}, closed=True),
    "Version": _object({"version": _TEXT}, closed=True),
    "Error": _object(
        {"error": _object({"message": _TEXT, "type": _TEXT, "param": _optional(_TEXT), "code": _optional(_TEXT)})},
        closed=True,
    ),
}

_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {
        "model": "moondream3-preview",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": _PICTURE}},
                    {"type": "text", "text": "What is in this image?"},
                ],
            }
        ],
    },
    "QueryRequest": {"image_url": _PICTURE, "question": "What is in this image?"},
    "CaptionRequest": {"image_url": _PICTURE, "length": "short"},
    "DetectRequest": {"image_url": _PICTURE, "object": "cup"},
    "PointRequest": {"image_url": _PICTURE, "object": "cup"},
}
