"""The load generator against a server, and the overhead benchmark: what they count, not how long it took."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import load, overhead
from mdinfer.errors import QueueFullError, RequestFailedError
from mdinfer.request import Chat
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import Live, live_server


@pytest.fixture
def served() -> Iterator[tuple[FakeEngine, Live]]:
    engine = FakeEngine()
    with live_server(engine, api_keys=("sk-load",)) as live:
        yield engine, live


def measured(live: Live, tmp_path: Path, *options: str, status: int = 0) -> dict[str, Any]:
    path = tmp_path / "load.json"
    assert (
        load.main([f"{live.url}/v1", "--requests", "6", "--concurrency", "3", "--json", str(path), *options]) == status
    )
    found: dict[str, Any] = json.loads(path.read_text())
    assert "sk-load" not in path.read_text()
    return found


def test_load(
    served: tuple[FakeEngine, Live],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MDINFER_API_KEY", "sk-load")
    engine, live = served
    found = measured(live, tmp_path, "--images", "2", "--image-size", "64x48", "--max-tokens", "9", "--warm-up", "0")
    assert (found["requests"], found["tokens"], found["prompt_tokens"], found["errors"]) == (6, 30, 66, {})
    for name in ("ttft_ms", "inter_token_ms", "latency_ms"):
        assert 0 <= found[name]["p50"] <= found[name]["p90"] <= found[name]["p99"]
    assert found["requests_per_s"] == pytest.approx(6 / found["seconds"])
    assert "6 requests in" in capsys.readouterr().out
    assert len(engine.requests) == 6
    chat = engine.requests[0]
    assert isinstance(chat, Chat)
    assert chat.max_tokens == 9
    *images, text = chat.messages[0]["content"]
    assert text["text"].startswith("Question ")
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2]))) as opened:
            assert (opened.size, opened.format) == ((64, 48), "JPEG")
    assert images[0] != images[1]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(refusal=QueueFullError("full")), "status 429"),
        (Script(fault=RequestFailedError("oops"), fault_at=2), "in the stream: server_error"),
    ],
)
def test_failures_are_told_apart_and_counted(
    served: tuple[FakeEngine, Live], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script, error: str
) -> None:
    monkeypatch.setenv("KEY", "sk-load")
    engine, live = served
    engine.script = script
    found = measured(live, tmp_path, "--key-from", "KEY", "--rate", "1000", status=1)
    assert (found["requests"], found["errors"]) == (0, {error: 6})
    assert found["ttft_ms"] is None


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    assert load.main(["http://127.0.0.1:9/v1", "--requests", "2", "--warm-up", "0", "--json", str(path)]) == 1
    [(error, count)] = json.loads(path.read_text())["errors"].items()
    assert error.startswith("connection: ")
    assert count == 2


def test_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "overhead.json"
    options = ["--requests", "3", "--streams", "3", "--tokens", "4", "--step-ms", "1", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["overhead", *options])
    overhead.main()
    found = json.loads(path.read_text())
    assert found["streams"]["tokens"] == 12
    trips = found["round_trips"]
    assert found["added_p50_ms"] == trips["text request"]["p50_ms"] - trips["floor"]["p50_ms"]
    assert "added at the median" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"data: nonsense\n\n", "an answer of another shape: JSONDecodeError"),
        (b"data: [1]\n\n", "an answer of another shape: AttributeError"),
        (b'data: {"error": "no"}\n\n', "an answer of another shape: AttributeError"),
        (b'data: {"choices": []}\n\n', "no end within 0.2 s"),
    ],
)
def test_a_server_that_answers_otherwise(data: bytes, error: str, tmp_path: Path) -> None:
    """It is counted, and the load goes on."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + data)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async def main() -> list[load.Record]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        options = load.arguments([url, "--requests", "2", "--concurrency", "1", "--timeout", "0.2"])
        async with server:
            return await load.run(options, load.bodies(options))

    assert [record.error for record in asyncio.run(main())] == [error] * 2
