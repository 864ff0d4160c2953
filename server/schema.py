"""The fields of the requests this server reads, their types and bounds.

Unknown fields are accepted and ignored, logged once each: refusing them breaks real clients. Fields that
would change the answer if they worked are refused, except for values that ask for nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from mdinfer.errors import RequestError
from mdinfer.request import MAX_LOGPROBS, MAX_OBJECTS, Sampling, check_integer
from mdinfer.server.errors import ApiError, bad_request

logger = logging.getLogger("mdinfer.server")

T = TypeVar("T", bound="Body")

MAX_TOKENS = 4096
MAX_CHOICES = 8
MAX_NAMES_LOGGED = 200


class Body(msgspec.Struct, kw_only=True, frozen=True):
    model: str | None = None


class StreamOptions(msgspec.Struct, kw_only=True, frozen=True):
    include_usage: bool | None = None


class ChatBody(Body, kw_only=True, frozen=True):
    model: str
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    reasoning: bool | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_completion_tokens", "max_tokens"):
            check_optional(name, getattr(self, name), 1, MAX_TOKENS)
        check_optional("n", self.n, 1, MAX_CHOICES)
        check_optional("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        check_optional("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options is only allowed when stream is true", "stream_options")
        self.wants_reasoning()

    def wants_reasoning(self) -> bool:
        """`reasoning` decides if it is there, else `reasoning_effort`; an effort of "none" means no."""
        if isinstance(self.reasoning, bool):
            return self.reasoning
        if self.reasoning is None:
            return self.reasoning_effort not in (None, "none")
        effort, enabled = self.reasoning.get("effort"), self.reasoning.get("enabled")
        if effort is not None and not isinstance(effort, str):
            raise bad_request("reasoning.effort must be a string", "reasoning.effort")
        if enabled is not None and not isinstance(enabled, bool):
            raise bad_request("reasoning.enabled must be a boolean", "reasoning.enabled")
        return effort != "none" and enabled is not False


class SkillSettings(msgspec.Struct, kw_only=True, frozen=True):
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_objects: int | None = None

    def __post_init__(self) -> None:
        check_optional("settings.max_tokens", self.max_tokens, 1, MAX_TOKENS)
        try:
            Sampling(**self.sampling())
        except RequestError as error:
            raise bad_request(f"settings.{error}", f"settings.{error.param}") from None
        check_optional("settings.max_objects", self.max_objects, 1, MAX_OBJECTS)

    def sampling(self) -> dict[str, Any]:
        """What was stated of the fields of Sampling."""
        values = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return {name: value for name, value in values.items() if value is not None}


class CaptionBody(Body, kw_only=True, frozen=True):
    image_url: str
    length: str = "normal"
    stream: bool | None = None
    settings: SkillSettings | None = None


class QueryBody(Body, kw_only=True, frozen=True):
    question: str
    image_url: str | None = None
    reasoning: bool | None = None
    spatial_refs: list[list[float]] | None = None
    stream: bool | None = None
    settings: SkillSettings | None = None


class ObjectBody(Body, kw_only=True, frozen=True):
    image_url: str
    object: str
    spatial_refs: list[list[float]] | None = None
    settings: SkillSettings | None = None


def check_optional(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None:
        check_integer(name, value, least, most)


def parse(kind: type[T], fields: dict[str, Any]) -> T:
    """Raises ApiError or RequestError that names the field at fault."""
    try:
        return msgspec.convert(fields, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _field_error(str(error), error.__cause__) from None


_MISMATCH = re.compile(r"Expected `(?P<expected>.+?)`, got `(?P<found>.+?)`(?: - at `\$\.?(?P<path>.*)`)?$")
_MISSING = re.compile(r"Object missing required field `(?P<field>.+?)`(?: - at `\$\.?(?P<path>.*)`)?$")
_OTHER = re.compile(r"(?P<reason>.+?) - at `\$\.?(?P<path>.+)`$")  # such as a number that no float can hold
_NAMES = {"str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean", "array": "a list"}
_NAMES |= {"object": "an object", "null": "null"}


def _field_error(text: str, cause: BaseException | None) -> Exception:
    if isinstance(cause, ApiError | ValueError):  # raised by our own checks of a field
        return cause
    if missing := _MISSING.match(text):
        param = _param(".".join(filter(None, (missing["path"], missing["field"]))))
        return bad_request(f"{param} is required", param)
    if mismatch := _MISMATCH.match(text):
        param = _param(mismatch["path"] or "")
        expected = " or ".join(_NAMES.get(name, name) for name in mismatch["expected"].split(" | "))
        found = _NAMES.get(mismatch["found"], mismatch["found"])
        return bad_request(f"{param or 'the body'} must be {expected}, found {found}", param or None)
    if other := _OTHER.match(text):
        param = _param(other["path"])
        return bad_request(f"{param}: {other['reason'].lower()}", param)
    return bad_request("a field of the body has a wrong type")


def _param(path: str) -> str:
    """`messages[0].content` in OpenAI's spelling: `messages.0.content`."""
    return re.sub(r"\[(\d+)\]", r".\1", path)


def _is_zero(value: object) -> bool:
    return not isinstance(value, bool) and value == 0


def _is_text(value: object) -> bool:
    return value == {"type": "text"}


NO_OPS: Mapping[str, Callable[[Any], bool]] = {
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": _is_text,
    "frequency_penalty": _is_zero,
    "presence_penalty": _is_zero,
    "logit_bias": lambda value: value == {},
    "audio": lambda _: False,
    "modalities": lambda value: value == ["text"],
    "chat_template": lambda _: False,
    "chat_template_kwargs": lambda _: False,
}

IGNORED = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}
    | {"parallel_tool_calls"}
)

_logged: set[str] = set()


def check_unsupported(fields: Mapping[str, Any]) -> None:
    """Raise ApiError for a parameter whose value asks for what we cannot do; null asks for nothing."""
    for name, is_no_op in NO_OPS.items():
        value = fields.get(name)
        if value is not None and not is_no_op(value):
            raise bad_request(f"{name} is not supported by this server: leave it out", name, "unsupported_parameter")


def log_unknown(kind: type[Body], fields: Mapping[str, Any]) -> None:
    """Name each field that is ignored once in the life of the process."""
    for name in fields.keys() - set(kind.__struct_fields__) - NO_OPS.keys() - IGNORED:
        if name not in _logged and len(_logged) < MAX_NAMES_LOGGED:
            _logged.add(name)
            logger.info("the unknown request field %s is ignored", ascii(name[:60]))
