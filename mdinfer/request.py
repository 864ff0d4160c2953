"""What a caller asks for: one frozen dataclass a skill, checked when it is made.

Every request samples on its own: nothing in it refers to an engine, so it can be kept, sent again, or queued. A
numpy image is copied when it is submitted; a PIL image must stay as it is until the request has ended.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

from mdinfer.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    from mdinfer.encoded_image import EncodedImage

    ImageInput: TypeAlias = str | os.PathLike[str] | bytes | PIL.Image.Image | np.ndarray[Any, Any] | EncodedImage
else:
    ImageInput = Any

SpatialRef: TypeAlias = tuple[float, ...]
Message: TypeAlias = Mapping[str, Any]

DEFAULT_TEMPERATURE = 0.2
DEFAULT_TOP_P = 0.9
DEFAULT_MAX_TOKENS = 768
MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 64
MAX_LOGPROBS = 20
MAX_OBJECTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. The generating requests carry these same fields.

    temperature   0 is greedy; up to 2
    top_p         in (0, 1]: the smallest set of likeliest tokens whose probabilities reach it
    max_tokens    upper bound of generated tokens, a reasoning trace included
    seed          the same seed and request draw with the same random numbers, whatever else runs (a batch may add
                  float numbers in another order, so that near-ties can fall differently); None: a random seed
    stop          up to 4 strings that end the answer; the stop text is not returned
    logprobs      None, or how many likeliest alternatives (0..20) to report beside each chosen token
    """

    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 2)
        check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise RequestError(
                "top_p is 0, it must be above 0 and at most 1; for greedy use temperature=0", param="top_p"
            )
        check_integer("max_tokens", self.max_tokens, 1, 1 << 20)
        if self.seed is not None:
            check_integer("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        strings = self.stop_strings
        if len(strings) > MAX_STOP_STRINGS:
            raise RequestError(f"stop has {len(strings)} strings, at most {MAX_STOP_STRINGS} are allowed", param="stop")
        for text in strings:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise RequestError(f"each stop must be a string of 1 to {MAX_STOP_LENGTH} characters", param="stop")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None or isinstance(self.stop, str):
            return () if self.stop is None else (self.stop,)
        if not isinstance(self.stop, Sequence):
            raise RequestError("stop must be a string or a list of strings", param="stop")
        return tuple(self.stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Sampling):
    """A question about a picture, or about nothing but the text (`image=None`).

    spatial_refs: points (x, y) and boxes (x_min, y_min, x_max, y_max) the question speaks of, in 0..1.
    """

    question: str
    image: ImageInput | None = field(default=None, repr=False)
    reasoning: bool = False
    spatial_refs: Sequence[SpatialRef] = ()

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        check_text("question", self.question)
        _check_bool("reasoning", self.reasoning)
        check_spatial_refs(self.spatial_refs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption(Sampling):
    image: ImageInput = field(repr=False)
    length: Literal["short", "normal", "long"] = "normal"

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        _check_image(self.image)
        if self.length not in ("short", "normal", "long"):
            raise RequestError(
                f'length must be "short", "normal" or "long", found {shown(self.length)}', param="length"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Detect:
    """Boxes of all objects of a kind; always greedy. `clip` cuts boxes at the picture's edge."""

    image: ImageInput = field(repr=False)
    object: str
    max_objects: int = 150
    clip: bool = True

    def __post_init__(self) -> None:
        _check_image(self.image)
        check_text("object", self.object)
        check_integer("max_objects", self.max_objects, 1, MAX_OBJECTS)
        _check_bool("clip", self.clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Centre points of all objects of a kind; always greedy. spatial_refs are as in Query."""

    image: ImageInput = field(repr=False)
    object: str
    max_objects: int = 150
    spatial_refs: Sequence[SpatialRef] = ()

    def __post_init__(self) -> None:
        _check_image(self.image)
        check_text("object", self.object)
        check_integer("max_objects", self.max_objects, 1, MAX_OBJECTS)
        check_spatial_refs(self.spatial_refs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat(Sampling):
    """A conversation in OpenAI's shape that ends with a user message.

    Each message is {"role": "system" | "developer" | "user" | "assistant", "content": ...}; a system message
    comes first. Content is a string or a list of {"type": "text", "text": ...}, {"type": "image", "image": ...}
    (anything the other requests take) and {"type": "image_url", "image_url": {"url": "data:..."}} parts.
    """

    messages: Sequence[Message] = field(repr=False)
    reasoning: bool = False

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        _check_bool("reasoning", self.reasoning)
        if isinstance(self.messages, str | bytes) or not isinstance(self.messages, Sequence) or not self.messages:
            raise RequestError("messages must be a list with at least one message", param="messages")


Request: TypeAlias = Query | Caption | Detect | Point | Chat


def shown(value: object) -> str:
    """For messages: what was found, never longer than a line."""
    if isinstance(value, int) and abs(value) >= 1 << 70:
        return "a huge integer"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_number(name: str, value: object, least: float, most: float) -> None:
    """Raise RequestError unless `value` is a finite number (no bool; numpy's are fine) within the bounds."""
    if not _is_real(value) or value != value or abs(value) == math.inf:
        raise RequestError(f"{name} must be a finite number, found {shown(value)}", param=name)
    if not least <= value <= most:
        raise RequestError(f"{name} is {shown(value)}, it must be from {least} to {most}", param=name)


def check_integer(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} must be an integer, found {shown(value)}", param=name)
    if not least <= int(value) <= most:
        raise RequestError(f"{name} is {shown(int(value))}, it must be from {least} to {most}", param=name)


def check_text(name: str, value: object) -> None:
    """Raise RequestError unless `value` is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string, found {type(value).__name__}", param=name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} holds a lone surrogate at character {error.start}: send valid Unicode", param=name
        ) from None


def check_spatial_refs(refs: object) -> None:
    if isinstance(refs, str | bytes) or not isinstance(refs, Sequence):
        raise RequestError("spatial_refs must be a list of points and boxes", param="spatial_refs")
    if len(refs) > MAX_OBJECTS:
        raise RequestError(f"{len(refs)} spatial_refs, at most {MAX_OBJECTS} are allowed", param="spatial_refs")
    for i, ref in enumerate(refs):
        if isinstance(ref, str | bytes) or not isinstance(ref, Sequence) or len(ref) not in (2, 4):
            raise RequestError(
                f"spatial_refs[{i}] must be (x, y) or (x_min, y_min, x_max, y_max)", param="spatial_refs"
            )
        for value in ref:
            if not _is_real(value) or not 0 <= value <= 1:
                raise RequestError(
                    f"spatial_refs[{i}] holds {shown(value)}, values go from 0 to 1", param="spatial_refs"
                )
        if len(ref) == 4 and not (ref[0] <= ref[2] and ref[1] <= ref[3]):
            raise RequestError(
                f"spatial_refs[{i}] is {tuple(ref)}: its maximum lies below its minimum", param="spatial_refs"
            )


def _is_real(value: object) -> TypeGuard[float]:
    """A number of Python's or numpy's, but no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be True or False, found {shown(value)}", param=name)


def _check_image(value: object) -> None:
    if value is None:
        raise RequestError("this request needs an image", param="image")
