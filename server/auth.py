"""Who may call: a key on every route except the few open ones. Pure ASGI, decided on the raw path."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from mdinfer.server.call import call_of
from mdinfer.server.errors import ApiError
from mdinfer.server.failure import ErrorResponse

OPEN_PATHS = frozenset({"/health", "/ready", "/version"})


class Authentication:
    """Refuses with 401 what carries no valid key, whatever the route, unless the path is open.

    Keys arrive as `Authorization: Bearer K` or `X-Moondream-Auth: K`. An empty value counts as absent; where
    both headers carry a key, both must be valid; a header sent twice is refused. Callers with different keys get
    different namespaces, from which no key can be told.
    """

    def __init__(self, app: ASGIApp, api_keys: Iterable[str], open_paths: frozenset[str] = OPEN_PATHS) -> None:
        self.app = app
        self.digests = [_digest(key.encode()) for key in api_keys]
        self.open_paths = open_paths
        self._secret = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.digests or self._is_open(scope):
            await self.app(scope, receive, send)
            return
        if (namespace := self._namespace(scope)) is not None:
            call_of(scope).namespace = namespace
            await self.app(scope, receive, send)
            return
        given = any(name in (b"authorization", b"x-moondream-auth") for name, _ in scope["headers"])
        message = "the API key is wrong" if given else "this server needs an API key"
        error = ApiError(
            401,
            f"{message}: send it as `Authorization: Bearer KEY` or `X-Moondream-Auth: KEY`",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await ErrorResponse(error)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["method"] == "OPTIONS" or scope["path"] in self.open_paths

    def _namespace(self, scope: Scope) -> str | None:
        """That of the caller, or None for a stranger."""
        credentials = _credentials(scope["headers"])
        known = [self._is_known(key) for key in credentials]
        if not known or not all(known):
            return None
        return hmac.new(self._secret, credentials[0], hashlib.sha256).hexdigest()

    def _is_known(self, key: bytes) -> bool:
        """Compared with every key, so that the time tells nothing."""
        digest, found = _digest(key), False
        for known in self.digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _credentials(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys a request carries; none where a header is repeated."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (b"authorization", b"x-moondream-auth"):
            if name in seen:
                return []
            seen[name] = value
    scheme, _, token = seen.get(b"authorization", b"").strip().partition(b" ")
    bearer = token.strip() if scheme.lower() == b"bearer" else b""
    return [key for key in (bearer, seen.get(b"x-moondream-auth", b"").strip()) if key]


def _digest(key: bytes) -> bytes:
    """Equal lengths make the comparison's time independent of the key's length."""
    return hashlib.sha256(key).digest()
