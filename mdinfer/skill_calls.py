"""A method for each skill: the short way to ask an engine one thing and wait, in a thread or in a coroutine."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from mdinfer.errors import RequestError
from mdinfer.handle import RequestHandle
from mdinfer.request import Caption, Chat, Detect, ImageInput, Message, Point, Query, Request
from mdinfer.result import Event, Result

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R")


class SamplingOptions(TypedDict, total=False):
    """Keywords of the calls that generate text; see `Sampling` for their meaning and defaults."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None


class SubmitOptions(TypedDict, total=False):
    """Keywords of `Engine.submit`."""

    namespace: str
    priority: int
    timeout: float | None


class SkillCalls(ABC):
    """Made of `submit` alone. Each call raises what ended its request; leaving a call early cancels it."""

    @abstractmethod
    def submit(
        self, request: Request, *, namespace: str = "", priority: int = 0, timeout: float | None = None
    ) -> RequestHandle:
        """Start a request and return at once."""

    def query(
        self,
        image: ImageInput | None,
        question: str,
        *,
        reasoning: bool = False,
        spatial_refs: Sequence[tuple[float, ...]] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """Answer a question about a picture, or about text alone (`image=None`). See `Query`."""
        return self._run(_query(image, question, reasoning, spatial_refs, sampling))

    async def aquery(
        self,
        image: ImageInput | None,
        question: str,
        *,
        reasoning: bool = False,
        spatial_refs: Sequence[tuple[float, ...]] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        return await self.submit(_query(image, question, reasoning, spatial_refs, sampling)).aresult()

    def caption(
        self,
        image: ImageInput,
        *,
        length: Literal["short", "normal", "long"] = "normal",
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """Describe a picture. See `Caption`."""
        return self._run(_make(Caption, image=image, length=length, **sampling))

    async def acaption(
        self,
        image: ImageInput,
        *,
        length: Literal["short", "normal", "long"] = "normal",
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        return await self.submit(_make(Caption, image=image, length=length, **sampling)).aresult()

    def detect(self, image: ImageInput, object: str, *, max_objects: int = 150, clip: bool = True) -> Result:
        """Boxes of all objects of a kind, in `result.objects`. See `Detect`."""
        return self._run(Detect(image=image, object=object, max_objects=max_objects, clip=clip))

    async def adetect(self, image: ImageInput, object: str, *, max_objects: int = 150, clip: bool = True) -> Result:
        request = Detect(image=image, object=object, max_objects=max_objects, clip=clip)
        return await self.submit(request).aresult()

    def point(
        self,
        image: ImageInput,
        object: str,
        *,
        max_objects: int = 150,
        spatial_refs: Sequence[tuple[float, ...]] = (),
    ) -> Result:
        """Centres of all objects of a kind, in `result.points`. See `Point`."""
        request = Point(image=image, object=object, max_objects=max_objects, spatial_refs=spatial_refs)
        return self._run(request)

    async def apoint(
        self,
        image: ImageInput,
        object: str,
        *,
        max_objects: int = 150,
        spatial_refs: Sequence[tuple[float, ...]] = (),
    ) -> Result:
        request = Point(image=image, object=object, max_objects=max_objects, spatial_refs=spatial_refs)
        return await self.submit(request).aresult()

    def chat(
        self, messages: Sequence[Message], *, reasoning: bool = False, **sampling: Unpack[SamplingOptions]
    ) -> Result:
        """Continue a conversation in OpenAI's shape. See `Chat`."""
        return self._run(_make(Chat, messages=messages, reasoning=reasoning, **sampling))

    async def achat(
        self, messages: Sequence[Message], *, reasoning: bool = False, **sampling: Unpack[SamplingOptions]
    ) -> Result:
        return await self.submit(_make(Chat, messages=messages, reasoning=reasoning, **sampling)).aresult()

    def stream(self, request: Request, **submission: Unpack[SubmitOptions]) -> Iterator[Event]:
        """Events of a request as they come; it starts with the first one asked for, and leaving the loop early cancels
        it. Keywords as of `submit`.
        """
        handle = self.submit(request, **submission)
        try:
            yield from handle
        finally:
            handle.cancel()

    async def astream(self, request: Request, **submission: Unpack[SubmitOptions]) -> AsyncIterator[Event]:
        handle = self.submit(request, **submission)
        try:
            async for event in handle:
                yield event
        finally:
            handle.cancel()

    def _run(self, request: Request) -> Result:
        """Wait for a request; leaving the wait (an interrupt, say) cancels it."""
        handle = self.submit(request)
        try:
            return handle.result()
        except BaseException:
            handle.cancel()
            raise


def _query(
    image: ImageInput | None,
    question: str,
    reasoning: bool,
    spatial_refs: Sequence[tuple[float, ...]],
    sampling: SamplingOptions,
) -> Query:
    return _make(Query, image=image, question=question, reasoning=reasoning, spatial_refs=spatial_refs, **sampling)


def _make(kind: type[R], **values: Any) -> R:
    """Build a request; an unknown keyword is a RequestError that names what there is."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # every request is a dataclass
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"{kind.__name__} takes {', '.join(known)}"
            raise RequestError(f"unknown argument {name!r}: {hint}", param=name)
    return kind(**values)
