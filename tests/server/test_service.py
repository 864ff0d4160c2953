from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mdinfer.errors import CheckpointError
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import Live, error_of, events_of, live_server, wait_until


def check_unavailable(live: Live, code: str) -> None:
    for response in (live.http.get("/ready"), live.chat(), live.chat(stream=True), live.http.post("/v1/query")):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert error_of(response)["code"] == code


def test_probes_of_a_running_server(live: Live) -> None:
    assert live.http.get("/health").json() == {"status": "ok"}
    assert live.http.get("/ready").json() == {"status": "ready"}
    assert set(live.http.get("/version").json()) == {"version"}
    assert live.http.head("/health").status_code == 200


def test_requests_wait_for_the_model() -> None:
    engine, gate = FakeEngine(), threading.Event()

    def load() -> FakeEngine:
        gate.wait(10)
        return engine

    with live_server(load) as live:
        assert live.http.get("/health").status_code == 200
        assert live.http.get("/v1/models").status_code == 200
        check_unavailable(live, "starting")
        gate.set()
        wait_until(lambda: live.http.get("/ready").status_code == 200)
        assert live.chat().status_code == 200
    assert engine.closed, "an engine that the app loaded is closed by it"


def test_a_model_that_cannot_be_loaded() -> None:
    def load() -> FakeEngine:
        raise CheckpointError("tensor /secret/0x1 is missing")

    with live_server(load) as live:
        wait_until(lambda: live.service.state == "failed")
        assert live.http.get("/health").status_code == 503
        check_unavailable(live, "load_failed")


def test_a_model_is_warm_before_it_is_ready() -> None:
    class Engine(FakeEngine):
        def warm_up(self) -> None:
            warming.set()
            assert gate.wait(10)

    warming, gate, engine = threading.Event(), threading.Event(), Engine()
    with live_server(lambda: engine) as live:
        assert warming.wait(10)
        check_unavailable(live, "starting")
        gate.set()
        wait_until(lambda: live.http.get("/ready").status_code == 200)


def test_a_model_that_cannot_be_warmed_up_is_closed() -> None:
    class Engine(FakeEngine):
        def warm_up(self) -> None:
            raise RuntimeError("no such kernel")

    engine = Engine()
    with live_server(lambda: engine) as live:
        wait_until(lambda: live.service.state == "failed")
        check_unavailable(live, "load_failed")
    assert engine.closed


def test_a_full_engine_refuses_before_the_body_comes(live: Live, fake: FakeEngine) -> None:
    fake.full = True
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as wire:
        head = "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        wire.sendall(head.encode())
        assert wire.recv(65536).startswith(b"HTTP/1.1 429 ")
    assert error_of(live.chat())["code"] == "queue_full"
    fake.full = False
    assert live.chat().status_code == 200


def test_bodies_together_take_bounded_memory() -> None:
    """Eight of the largest size; what arrives beyond is refused, and there is room again once it is gone."""
    megabyte = 1 << 20
    with live_server(FakeEngine(), max_body_bytes=megabyte, body_timeout=5) as live:
        head = "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        wires = [socket.create_connection(("127.0.0.1", live.port), timeout=5) for _ in range(9)]
        try:
            for wire in wires:
                wire.sendall(f"{head}Content-Length: {megabyte}\r\n\r\n".encode() + b" " * (megabyte - 1))
            wires[0].settimeout(0.05)
            refused = None
            for wire in wires * 40:
                wire.settimeout(0.05)
                try:
                    refused = wire.recv(65536)
                    break
                except TimeoutError:
                    continue
            assert refused is not None
            assert refused.startswith(b"HTTP/1.1 429 ")
            assert b"too_many_bytes" in refused
            assert live.service.arriving.taken <= 8 * megabyte
        finally:
            for wire in wires:
                wire.close()
        wait_until(lambda: live.service.arriving.taken == 0)
        assert live.chat().status_code == 200


def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine keeps pictures as they came until it reads them: a queue that only counts requests has no bound."""
    monkeypatch.setattr("mdinfer.server.service.HELD", 2)
    engine = FakeEngine(script=Script(pause=0.3))
    large = {"messages": [{"role": "user", "content": "x" * 90_000}]}
    with live_server(engine, max_body_bytes=100_000) as live, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(live.chat, **large) for _ in range(2)]
        wait_until(lambda: live.service.held.taken > 180_000)
        refused = live.chat(**large)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_bytes")
        assert "retry-after" in refused.headers
        assert [answer.result().status_code for answer in answers] == [200, 200]
        wait_until(lambda: live.service.held.taken == 0)
        assert live.chat(**large).status_code == 200


def test_a_dead_engine(live: Live, fake: FakeEngine) -> None:
    fake.healthy = False
    assert live.http.get("/health").status_code == 503
    check_unavailable(live, "engine_dead")


def test_an_engine_of_the_caller_stays_open() -> None:
    engine = FakeEngine()
    with live_server(engine):
        pass
    assert not engine.closed


def in_background(call: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


@pytest.mark.parametrize("stream", [False, True])
def test_stopping_lets_requests_finish(stream: bool) -> None:
    engine = FakeEngine(Script(pause=0.15))
    with live_server(engine) as live:
        thread, results = in_background(lambda: live.chat(stream=stream))
        wait_until(lambda: bool(engine.handles))
        live.server.handle_exit(15, None)
        thread.join(10)
        [response] = results
        assert response.status_code == 200
        assert not stream or events_of(response.text)[-1] == "[DONE]"
        assert live.server.exit_status == 0


@pytest.mark.parametrize("stream", [False, True])
def test_stopping_ends_what_takes_too_long(stream: bool) -> None:
    engine = FakeEngine(Script(text=["x"] * 100, pause=0.2))
    with live_server(engine, drain_timeout=0.5) as live:
        thread, results = in_background(lambda: live.chat(stream=stream))
        wait_until(lambda: bool(engine.handles))
        live.server.handle_exit(15, None)
        thread.join(10)
        [response] = results
        error = events_of(response.text)[-1]["error"] if stream else error_of(response)
        assert error["code"] == "shutting_down"
        assert response.status_code == (200 if stream else 503)


def test_probes_are_answered_while_requests_finish() -> None:
    engine = FakeEngine(Script(pause=0.2))
    with live_server(engine) as live:
        thread, results = in_background(lambda: live.chat())
        wait_until(lambda: bool(engine.handles))
        live.server.handle_exit(15, None)
        time.sleep(0.3)
        assert httpx.get(f"{live.url}/health").status_code == 200
        response = httpx.get(f"{live.url}/ready")
        assert response.status_code == 503
        assert response.headers["retry-after"]
        thread.join(10)
        assert results[0].status_code == 200


def test_stopping_does_not_wait_for_a_body() -> None:
    with live_server(FakeEngine()) as live, socket.create_connection(("127.0.0.1", live.port), timeout=5) as wire:
        head = b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        wire.sendall(head + b"{")
        time.sleep(0.2)
        live.server.handle_exit(15, None)
        answer = wire.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"shutting_down" in answer


def test_no_new_requests_while_draining(live: Live) -> None:
    live.service.draining = True
    try:
        assert live.http.get("/health").status_code == 200
        check_unavailable(live, "shutting_down")
    finally:
        live.service.draining = False
