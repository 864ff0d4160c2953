"""The server as a process: its socket, its signals, what it prints, and with which status it ends."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

import prometheus_client
import uvicorn

from mdinfer import __version__
from mdinfer.errors import ConfigError, MdinferError
from mdinfer.server.app import create_app
from mdinfer.server.commands import loading, streams
from mdinfer.server.connection import Connection
from mdinfer.server.logs import LogFormat, log_to_stderr
from mdinfer.server.protocols import ServingEngine
from mdinfer.server.service import Service, log_load_failure
from mdinfer.server.settings import Settings
from mdinfer.server.turns import Turns

KEEP_ALIVE_SECONDS = 75
# A busy thread lets the engine's and the event loop's go on after so long; by Python's default after 5 ms.
SWITCH_SECONDS = 0.0001
BACKLOG = 2048
BURST = 16  # connections accepted at a stretch: with those of a few rounds more, still fewer than SPARE_FILES
GRACE_SECONDS = 3  # for error events to reach their clients after the drain timeout


def serve(model: str, options: dict[str, Any], settings: Settings, *, log_level: str, log_format: LogFormat) -> int:
    """Listen at once, load meanwhile, serve until a signal. Returns the exit status.

    0 after SIGTERM, 130 after an interrupt, 143 or 130 at once after a second signal, 1 or 2 if the engine cannot be
    loaded. Raises ConfigError for an address that cannot be bound.
    """
    log_to_stderr(log_level, log_format)
    # When each counter was made: a second series beside every one.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types
    listener = listen(settings)
    url = url_of(settings, listener)
    failures: list[BaseException] = []

    begun = time.monotonic()
    loaded = begun

    def load() -> ServingEngine:
        nonlocal loaded
        engine = loading.load_engine(model, **options)
        loaded = time.monotonic()
        streams.tell("mdinfer: warming up ...")
        return engine

    def stop(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(load, settings)
    service: Service = app.state.service
    service.on_load_failure = stop
    service.on_ready = lambda engine: streams.tell(
        _banner(engine, model, settings, url, loaded - begun, time.monotonic() - loaded), sys.stdout
    )
    server = Server(uvicorn_config(app, settings), service)
    streams.tell(f"mdinfer: listening on {url}, loading {model} ...")
    sys.setswitchinterval(SWITCH_SECONDS)
    server.run(sockets=[listener])
    if failures:
        return _report(failures[0])
    if server.loading:  # native code on that thread must not meet a dying interpreter
        _end_now(server.exit_status)
    return server.exit_status


class Server(uvicorn.Server):
    """uvicorn's server, which drains as the service wants it, and ends with a status instead of a signal."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.exit_status = 0

    @property
    def loading(self) -> bool:
        return any(thread.name == "mdinfer-load" and thread.is_alive() for thread in threading.enumerate())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends the process as the signal itself would."""
        if self.should_exit:
            _end_now(128 + sig)
        self.should_exit = True
        self.exit_status = 130 if sig == signal.SIGINT else 0
        self.service.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # again: asyncio has one number for both

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Connections are accepted, and refused with a 503, for as long as requests run: probes want an answer."""
        self.service.drain()
        loop = asyncio.get_running_loop()
        begin, limit = loop.time(), self.service.settings.drain_timeout
        timer = loop.call_later(limit, self.service.end_running)
        while self.service.running and loop.time() < begin + limit + GRACE_SECONDS:
            await asyncio.sleep(0.05)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(begin + limit + GRACE_SECONDS - loop.time()))
        await super().shutdown(sockets)
        timer.cancel()


def uvicorn_config(app: object, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn types the scope more closely than Starlette
        http=functools.partial(Connection, turns=Turns()),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        backlog=BURST,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def listen(settings: Settings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _unbound(settings, error.strerror or str(error)) from None
    except ValueError:  # UnicodeError, from the encoding of international names
        raise _unbound(settings, "it is no host name") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _unbound(settings, error.strerror or str(error)) from None
    listener.setblocking(False)
    return listener


def _unbound(settings: Settings, reason: str) -> ConfigError:
    return ConfigError(f"{settings.host}:{settings.port} cannot be bound: {reason}")


def url_of(settings: Settings, listener: socket.socket) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(settings.host, settings.host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"http://{host}:{listener.getsockname()[1]}"


def _banner(engine: ServingEngine, model: str, settings: Settings, url: str, loading: float, warming_up: float) -> str:
    """Times in seconds."""
    key = " -H 'Authorization: Bearer YOUR_API_KEY'" if settings.api_keys else ""
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    body = shlex.quote(json.dumps({"model": settings.model_names[0], "messages": messages}))
    access = f"{len(settings.api_keys)} API key(s)" if settings.api_keys else "no API key"
    where = "this machine only" if settings.loopback else f"all who reach {settings.host}"
    return "\n".join(
        [
            "",
            f"mdinfer {__version__} serves {model}",
            *(f"  {line}" for line in engine.description().splitlines()),
            f"  ready     in {loading + warming_up:.1f} s: loading {loading:.1f}, warming up {warming_up:.1f}",
            f"  base URL  {url}/v1",
            f"  names     {', '.join(settings.model_names)}",
            f"  access    {access}, {where}",
            "",
            "Try it:",
            f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\",
            f"    -d {body}",
            "",
        ]
    )


def _report(error: BaseException) -> int:
    if isinstance(error, MdinferError):
        streams.tell(f"mdinfer: error: {error}")
    else:
        log_load_failure(error)
    return 2 if isinstance(error, ConfigError) else 1


def _end_now(status: int) -> None:
    streams.settle()
    os._exit(status)
