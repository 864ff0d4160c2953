from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import pytest

from mdinfer.errors import ConfigError
from mdinfer.server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import Live, error_of, live_server

KEY = "sk-first"
LOCKED = ["/v1/models", "/v1/models/moondream3-preview", "/v1/chat/completions", "/v1/query", "/v1/nope", "/"]
LOCKED += ["/v1/caption", "/v1/detect", "/v1/point", "/health/", "//health", "/docs", "/metrics/", "/openapi.json"]
OPEN = ["/health", "/ready", "/version", "/metrics"]


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live_server(FakeEngine(), api_keys=(KEY, "second"), cors_origins=("https://app.example",)) as live:
        yield live


def get(live: Live, path: str, headers: list[tuple[bytes, bytes]]) -> httpx.Response:
    return live.http.get(path, headers=headers)


WRONG: dict[str, list[tuple[bytes, bytes]]] = {
    "none": [],
    "wrong": [(b"authorization", b"Bearer nope")],
    "prefix": [(b"authorization", b"Bearer sk-firs")],
    "suffix": [(b"authorization", b"Bearer sk-firstx")],
    "case": [(b"authorization", b"Bearer SK-FIRST")],
    "empty": [(b"authorization", b"Bearer")],
    "bare": [(b"authorization", b"sk-first")],
    "basic": [(b"authorization", b"Basic sk-first")],
    "two": [(b"authorization", b"Bearer sk-first"), (b"authorization", b"Bearer nope")],
    "twice": [(b"authorization", b"Bearer sk-first"), (b"authorization", b"Bearer sk-first")],
    "contradiction": [(b"authorization", b"Bearer sk-first"), (b"x-moondream-auth", b"nope")],
    "non-ascii": [(b"authorization", "Bearer clé".encode())],
    "joined": [(b"authorization", b"Bearer sk-first, Bearer sk-first")],
    "moondream wrong": [(b"x-moondream-auth", b"nope")],
    "moondream empty": [(b"x-moondream-auth", b"")],
    "host": [(b"host", b"x/health?")],
}
RIGHT: dict[str, list[tuple[bytes, bytes]]] = {
    "bearer": [(b"authorization", b"Bearer sk-first")],
    "second key": [(b"authorization", b"bearer second")],
    "moondream": [(b"x-moondream-auth", b"sk-first")],
    "both": [(b"authorization", b"Bearer sk-first"), (b"x-moondream-auth", b"second")],
    "empty moondream": [(b"authorization", b"Bearer sk-first"), (b"x-moondream-auth", b"")],
    "behind basic": [(b"authorization", b"Basic dTpw"), (b"x-moondream-auth", b"sk-first")],
}


@pytest.mark.parametrize("path", LOCKED)
@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_without_a_valid_key(locked: Live, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    response = get(locked, path, headers)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


@pytest.mark.parametrize("headers", RIGHT.values(), ids=RIGHT.keys())
def test_with_a_valid_key(locked: Live, headers: list[tuple[bytes, bytes]]) -> None:
    assert get(locked, "/v1/models", headers).status_code == 200


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_open_routes(locked: Live, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert get(locked, path, headers).status_code == 200


def test_cors(locked: Live) -> None:
    origin = {"origin": "https://app.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = locked.http.options("/v1/chat/completions", headers={**origin, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    refused = locked.http.get("/v1/models", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    stranger = locked.http.get("/health", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_a_refused_preflight_is_an_error_like_all(locked: Live) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "DELETE"}
    response = locked.http.options("/v1/models", headers=headers)
    assert response.status_code == 400
    assert "origin" in error_of(response)["message"]
    assert "access-control-allow-origin" not in response.headers


def test_cors_is_off_by_default(live: Live) -> None:
    response = live.http.get("/health", headers={"origin": "https://app.example"})
    assert not any(name.startswith("access-control") for name in response.headers)
    assert live.http.options("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.com"])
def test_strangers_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="--api-key"):
        Settings(host=host)
    assert Settings(host=host, api_keys=("k",)).host == host
    assert Settings(host=host, insecure=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_machine_needs_none(host: str) -> None:
    assert Settings(host=host).loopback


@pytest.mark.parametrize("key", ["", " ", "a b", "clé", "a\n"])
def test_keys_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(ConfigError):
        Settings(api_keys=(key,))


def test_each_key_has_a_namespace_of_its_own(locked: Live) -> None:
    engine = locked.service.engine
    assert isinstance(engine, FakeEngine)
    engine.namespaces.clear()
    for key in (KEY, "second", KEY):
        assert locked.http.post("/v1/query", json={"question": "?"}, headers=bearer(key)).status_code == 200
    first, second, third = engine.namespaces
    assert first == third != second
    assert all(len(name) == 64 and set(name) <= set("0123456789abcdef") for name in (first, second))
    digests = {digest(key.encode()).hexdigest() for key in (KEY, "second") for digest in (hashlib.sha256, hashlib.md5)}
    assert not {first, second} & digests, "a plain digest of a short key can be guessed"


def test_every_route_is_either_open_or_locked(locked: Live) -> None:
    paths = locked.http.get("/openapi.json", headers=bearer(KEY)).json()["paths"]
    assert {path.replace("{model}", "moondream3-preview") for path in paths} <= {*LOCKED, *OPEN}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_without_keys_all_share_a_namespace(live: Live, fake: FakeEngine) -> None:
    for key in ("a", "b"):
        live.http.post("/v1/query", json={"question": "?"}, headers=bearer(key))
    assert fake.namespaces == ["", ""]


def test_metrics_are_open_on_this_machine_only() -> None:
    with live_server(FakeEngine(), api_keys=(KEY,)) as live:
        assert live.http.get("/metrics").status_code == 200
    with live_server(FakeEngine(), api_keys=(KEY,), host="0.0.0.0") as live:
        assert live.http.get("/metrics").status_code == 401
        assert live.http.get("/metrics", headers=bearer(KEY)).status_code == 200
