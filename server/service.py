"""The engine behind the app and where it is in its life; the names and limits requests are held to."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeAlias

from starlette.requests import Request
from starlette.types import Message

from mdinfer.errors import MdinferError, QueueFullError
from mdinfer.server.errors import ApiError, api_error, too_many, unavailable
from mdinfer.server.metrics import ServerMetrics
from mdinfer.server.protocols import EngineLoader, EngineStats, ServingEngine
from mdinfer.server.settings import Settings
from mdinfer.server.work import Work

logger = logging.getLogger("mdinfer.server")

# Bodies of the largest size that may be in memory: while they arrive and are understood, which takes a multiple; and
# of requests that wait or run, whose pictures the engine keeps as they came until it reads them.
ARRIVING, HELD = 8, 32

State: TypeAlias = Literal["starting", "ready", "draining", "failed", "dead"]


class ByteRoom:
    """Bounds what several requests hold together, in bytes."""

    def __init__(self, limit: int, refusal: str) -> None:
        self._limit, self._refusal, self.taken = limit, refusal, 0

    @contextmanager
    def share(self, count: int = 0) -> Iterator[Callable[[int], None]]:
        """Hold `count` bytes, and more at each call of what this gives, to the end of the block. Raises ApiError 429
        where that is too much.
        """
        held = 0

        def take(count: int) -> None:
            nonlocal held
            held += count
            self.taken += count
            if self.taken > self._limit:
                raise too_many(f"{self._refusal}: try again in a moment", "too_many_bytes")

        try:
            take(count)
            yield take
        finally:
            self.taken -= held


class Service:
    """Takes an engine, or a function that loads one in the background; that one is warmed up, and closed at the end."""

    def __init__(self, source: ServingEngine | EngineLoader, settings: Settings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.draining = False
        self.load_failed = False
        self.running: set[Work] = set()
        self._arriving: set[asyncio.Future[Message]] = set()
        self.metrics = ServerMetrics(self._statistics)
        self.on_load_failure: Callable[[BaseException], None] = log_load_failure
        self.on_ready: Callable[[ServingEngine], None] = lambda engine: None
        self.arriving = ByteRoom(ARRIVING * settings.max_body_bytes, "too many large requests arrive at once")
        self.held = ByteRoom(HELD * settings.max_body_bytes, "too many large requests wait")
        # One thread: several that decode at once would keep the event loop waiting for the interpreter.
        self.decoder = ThreadPoolExecutor(1, thread_name_prefix="mdinfer-json")
        self._source = source
        self._loaded: ServingEngine | None = None if callable(source) else source
        self._abandoned = False

    def start(self) -> None:
        """Begin loading, on a thread that does not keep the process alive."""
        if callable(self._source) and self._loaded is None:
            threading.Thread(target=self._load, name="mdinfer-load", daemon=True).start()

    def drain(self) -> None:
        """Take no more requests, nor the rest of those that still arrive; those that run go on."""
        self.draining = True
        for arriving in list(self._arriving):
            arriving.cancel()

    async def arrival(self, message: Awaitable[Message], seconds: float) -> Message:
        """The next piece of a request. Raises ApiError 503 once the server drains, or asyncio.TimeoutError."""
        arriving = asyncio.ensure_future(message)
        self._arriving.add(arriving)
        try:
            return await asyncio.wait_for(arriving, seconds)
        except asyncio.CancelledError:
            if self.draining:
                raise self.unavailable() from None
            raise
        finally:
            self._arriving.discard(arriving)

    def end_running(self) -> None:
        """Cancel what still runs; each client hears of it."""
        for work in list(self.running):
            work.cancel(unavailable("the server is shutting down: send the request again", "shutting_down"))

    def close(self) -> None:
        """Close the engine if it was loaded here."""
        self.draining = self._abandoned = True
        self.decoder.shutdown(wait=False)
        if callable(self._source) and self._loaded is not None:
            self._loaded.close()

    def _load(self) -> None:
        assert callable(self._source)
        try:
            engine = self._source()
            try:
                engine.warm_up()
            except BaseException:
                engine.close()
                raise
        except BaseException as error:
            self.load_failed = True
            self.on_load_failure(error)
            return
        self._loaded = engine
        if self._abandoned:
            engine.close()
        else:
            self.on_ready(engine)

    def _statistics(self) -> EngineStats | None:
        return None if self._loaded is None else self._loaded.stats()

    @property
    def state(self) -> State:
        if self.draining:
            return "draining"
        if self.load_failed:
            return "failed"
        if self._loaded is None:
            return "starting"
        return "ready" if self._loaded.healthy else "dead"

    @property
    def engine(self) -> ServingEngine:
        """Raises ApiError 503 unless requests can run."""
        if self.state == "ready" and self._loaded is not None:
            return self._loaded
        raise self.unavailable()

    def check_room(self) -> None:
        """Refuse before a body is read: raises ApiError 429 while the engine is full, or 503 as `engine` does."""
        if self.engine.full:
            raise api_error(QueueFullError("full"))

    def unavailable(self) -> ApiError:
        match self.state:
            case "starting":
                return unavailable("the model is still loading: try again soon", "starting", 5)
            case "draining":
                return unavailable("the server is shutting down", "shutting_down")
            case "failed":
                return unavailable("the model could not be loaded: see the server's log", "load_failed", 30)
            case _:
                return unavailable("the engine has stopped: the server must be restarted", "engine_dead", 30)

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ApiError 404 for one that is not served."""
        if name is None:
            return self.settings.model_names[0]
        if name in self.settings.model_names:
            return name
        served = ", ".join(self.settings.model_names)
        message = f"the model {name[:100]!r} does not exist here: use {served}"
        raise ApiError(404, message, param="model", code="model_not_found")


def log_load_failure(error: BaseException) -> None:
    expected = isinstance(error, MdinferError)
    logger.error("the engine could not be loaded: %s", error, exc_info=None if expected else error)


def service_of(http: Request) -> Service:
    service: Service = http.app.state.service
    return service
