"""What an operator decides about the HTTP server. Nothing here concerns the model or the engine."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from mdinfer.errors import ConfigError

DEFAULT_MODEL_NAMES = ("moondream/moondream3-preview", "moondream3-preview")
MAX_SECONDS = 1e9  # what an engine takes as a timeout
MESSAGE_FIELDS = frozenset({"role", "content", "refusal", "reasoning_details", "tool_calls", "function_call", "audio"})
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")  # as browsers write it


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Raises ConfigError on a value that cannot work, or one that would serve strangers without a key.

    host             what is listened at, and so who can connect; where another server listens for the app: at what
    api_keys         any of them opens every route; empty: no key is asked for
    insecure         allows a host that others can reach although there is no key
    model_names      names that requests may use; the first one is the one to show
    max_body_bytes   larger request bodies are refused while they are read
    max_images       images that one request may carry
    cors_origins     origins whose pages may call the server; empty: no CORS headers at all
    request_timeout  seconds from a request's arrival to its last token, or None
    body_timeout     seconds that a request's body may make no progress, and after which it must come at some speed
    drain_timeout    seconds that running requests get to finish when the server stops
    ping_interval    seconds of silence after which a stream carries a comment line
    reasoning_alias  a second name under which the reasoning trace is sent, such as "reasoning_content"
    """

    host: str = "127.0.0.1"
    port: int = 2020
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False
    model_names: tuple[str, ...] = DEFAULT_MODEL_NAMES
    max_body_bytes: int = 64 << 20
    max_images: int = 32
    cors_origins: tuple[str, ...] = ()
    request_timeout: float | None = None
    body_timeout: float = 20.0
    drain_timeout: float = 30.0
    ping_interval: float = 15.0
    reasoning_alias: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, it must be from 0 (any free one) to 65535")
        for key in self.api_keys:
            if not key or not all("!" <= character <= "~" for character in key):
                raise ConfigError("an API key must be one or more visible ASCII characters without spaces")
        if not self.model_names or not all(self.model_names):
            raise ConfigError("the server needs at least one model name, and none may be empty")
        if not all(name.isprintable() for name in self.model_names):
            raise ConfigError("a model name must be printable Unicode")
        for name in ("max_body_bytes", "max_images"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be above 0")
        for name in ("request_timeout", "body_timeout", "drain_timeout", "ping_interval"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= MAX_SECONDS:
                raise ConfigError(f"{name} is {seconds:g}, it must be above 0 and at most {MAX_SECONDS:g} seconds")
        if self.reasoning_alias is not None and not self.reasoning_alias.isidentifier():
            raise ConfigError(f"reasoning_alias is {self.reasoning_alias!r}, it must be a plain field name")
        if self.reasoning_alias in MESSAGE_FIELDS:
            raise ConfigError(f"reasoning_alias is {self.reasoning_alias!r}, which a message has for something else")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                message = "it must be * or such as https://example.com: in lower case, without a path or a final slash"
                raise ConfigError(f"the CORS origin {origin!r} matches no page: {message}")
        if not (self.api_keys or self.insecure or self.loopback):
            raise ConfigError(
                f"host {self.host} can be reached by others and no API key is set: give --api-key (or set "
                "MDINFER_API_KEY), bind 127.0.0.1, or say --insecure to serve anybody"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
