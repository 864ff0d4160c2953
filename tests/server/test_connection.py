"""Clients that are slow, rude or gone, on bare sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from mdinfer.server import body, connection
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import MODEL, Live, live_server, wait_until

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.4)
    monkeypatch.setattr(connection, "DISCARD_SECONDS", 0.4)
    with live_server(FakeEngine(), body_timeout=0.4, max_body_bytes=1000) as live:
        yield live


def test_a_reader_that_stops_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READER_SECONDS", 1.0)
    engine = FakeEngine(Script(text=["x" * 10_000] * 3000))
    question = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    with live_server(engine) as live, socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", live.port))
        wire.sendall(POST + f"Content-Length: {len(question)}\r\n\r\n".encode() + question)
        wait_until(lambda: bool(engine.handles))
        buffered = 0
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            for client in list(live.server.server_state.connections):
                buffered = max(buffered, client.transport.get_write_buffer_size())
            assert live.chat(max_tokens=1).status_code == 200, "others are served meanwhile"
        assert 0 < buffered < 1 << 20
        wait_until(lambda: not live.service.running, 5)
        assert engine.handles[0].cancelled.is_set()


def talk(live: Live, data: bytes, seconds: float = 3.0) -> bytes:
    """All that comes back until the server closes; fails if it does not."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=seconds) as wire:
        wire.sendall(data)
        return read_all(wire)


def read_all(wire: socket.socket) -> bytes:
    received = b""
    try:
        while piece := wire.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_more_connections_than_files(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ones = len(live.server.server_state.connections)
    monkeypatch.setattr(connection, "most_connections", lambda: open_ones + 2)
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    wires = [socket.create_connection(("127.0.0.1", live.port), timeout=5) for _ in range(4)]
    try:
        assert [read_all(wire) for wire in wires[2:]] == [b"", b""]
        for wire in wires[:2]:
            wire.sendall(request)
            assert wire.recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        for wire in wires:
            wire.close()
    wait_until(lambda: len(live.server.server_state.connections) <= open_ones)
    assert talk(live, request.replace(b"Host", b"Connection: close\r\nHost")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("data", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_unfinished_headers(impatient: Live, data: bytes) -> None:
    begin = time.monotonic()
    assert talk(impatient, data) == b""
    assert 0.2 < time.monotonic() - begin < 2


def test_unfinished_headers_of_a_second_request(impatient: Live) -> None:
    answer = talk(impatient, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 50\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_unfinished_body(impatient: Live, framing: bytes) -> None:
    start = b'{"model' if b"Length" in framing else b'7\r\n{"model\r\n'
    answer = talk(impatient, POST + framing + b"\r\n" + start)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer


def test_a_body_that_drips(impatient: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some bytes now and then are progress, but not enough."""
    monkeypatch.setattr(body, "LEAST_RATE", 1000)
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=5) as wire:
        wire.sendall(POST + b"Content-Length: 900\r\n\r\n")
        wire.settimeout(0.05)
        answer = b""
        for _ in range(60):
            try:
                wire.sendall(b" ")
                if not (piece := wire.recv(65536)):
                    break
                answer += piece
            except TimeoutError:
                continue
            except OSError:
                break
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_refused_body_is_not_read_for_ever(impatient: Live) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=5) as wire:
        wire.sendall(POST + b"Content-Length: 100000000\r\n\r\n")
        begin = time.monotonic()
        try:
            while time.monotonic() - begin < 3:
                wire.sendall(b" " * 1000)
                time.sleep(0.01)
        except OSError:
            return
        pytest.fail("the server reads on")


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        POST + b"Content-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
    ],
    ids=["nonsense", "tls", "two lengths", "negative length", "no host", "large header"],
)
def test_what_is_not_http(impatient: Live, data: bytes) -> None:
    head, _, answer = talk(impatient, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id" in head
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    paths = ["/health", "/nope", "/version"] * 33
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths]
    last = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = talk(live, b"".join(requests) + last)
    statuses = [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", answer)]
    assert [status == 404 for status in statuses] == [path == "/nope" for path in paths] + [False]


@pytest.mark.parametrize(
    "ahead", [b"G", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2], ids=["a byte", "two requests"]
)
def test_a_client_that_leaves_after_it_sent_more(live: Live, fake: FakeEngine, ahead: bytes) -> None:
    fake.script = Script(pause=5)
    question = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
    with socket.create_connection(("127.0.0.1", live.port)) as wire:
        wire.sendall(POST + f"Content-Length: {len(question)}\r\n\r\n".encode() + question)
        wait_until(lambda: bool(fake.handles))
        wire.sendall(ahead)
        time.sleep(0.1)
    wait_until(fake.handles[0].cancelled.is_set, 1)


def test_length_and_chunks_together_are_not_smuggled(live: Live) -> None:
    smuggled = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    framing = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
    answer = talk(live, POST + framing + smuggled)
    assert b'"version"' not in answer
    assert answer.startswith(b"HTTP/1.1 400 ")
