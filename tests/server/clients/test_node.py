"""Clients for Node, as npm installs them from the lock file beside this test; skipped without node or a registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import MODEL, Live, live_server

KEY = "sk-node"
SOURCES = Path(__file__).parent / "node"
TEXT = "".join(Script().text)
TRACE = "".join(Script().reasoning)

pytestmark = pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm")


@pytest.fixture(scope="module")
def installed(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts and their packages, kept from run to run where pytest keeps a cache."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("node-clients") if cache else tmp_path_factory.mktemp("node-clients")
    changed = not (folder / "node_modules").exists()
    for source in SOURCES.iterdir():
        target = folder / source.name
        if source.suffix == ".json" and not (target.exists() and target.read_bytes() == source.read_bytes()):
            changed = True
        shutil.copy(source, target)
    if changed:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            shutil.rmtree(folder / "node_modules", ignore_errors=True)
            pytest.skip(f"npm cannot install the clients: {done.stderr[-300:]}")
    return folder


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live_server(FakeEngine(), api_keys=(KEY,), reasoning_alias="reasoning_content") as live:
        yield live


def run(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(["node", script, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def node_version() -> int:
    return int(subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip("v\n").split(".")[0])


@pytest.mark.parametrize("package", ["openai-6", "openai"])
def test_openai_node(installed: Path, served: Live, data_url: str, package: str) -> None:
    if package == "openai" and node_version() < 22:
        pytest.skip("openai-node 7 needs node 22")
    seen = run(installed, "openai.mjs", served.url, KEY, data_url, package)
    errors = seen.pop("errors")
    assert MODEL in seen.pop("models")
    assert seen == {
        "whole": {"text": TEXT, "total": 16},
        "picture": TEXT,
        "turns": TEXT,
        "chunks": TEXT,
        "streamedTotal": 16,
        "runner": [TEXT, TEXT],
        "runnerDeltas": TEXT,
        "runnerLogprobs": [TEXT, TEXT],
        "runnerUsage": 21,
        "reasoning": TRACE,
        "effort": TRACE,
    }
    assert errors == [
        {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model", "id": "req_"},
        {"kind": "BadRequestError", "status": 400, "code": None, "param": "temperature", "id": "req_"},
        {
            "kind": "BadRequestError",
            "status": 400,
            "code": "invalid_image",
            "param": "messages.0.content.0.image_url",
            "id": "req_",
        },
        {"kind": "AuthenticationError", "status": 401, "code": "invalid_api_key", "param": None, "id": "req_"},
    ]


@pytest.mark.parametrize("key", [KEY, ""])
def test_moondream_node(installed: Path, served: Live, picture: Path, key: str) -> None:
    if key:
        seen = run(installed, "moondream.mjs", served.url, key, str(picture))
    else:  # it sends an empty X-Moondream-Auth then
        with live_server(FakeEngine()) as live:
            seen = run(installed, "moondream.mjs", live.url, key, str(picture))
    assert seen.pop("reasoning")["text"] == TRACE
    assert seen.pop("objects") == [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}]
    assert seen.pop("points") == [{"x": 0.5, "y": 0.25}]
    assert seen == dict.fromkeys(("caption", "captionStream", "query", "queryStream", "queryAlone"), TEXT)


def test_ai_sdk(installed: Path, served: Live, data_url: str) -> None:
    seen = run(installed, "ai-sdk.mjs", served.url, KEY, data_url)
    assert seen.pop("error")["status"] == 404
    assert seen == {
        "whole": {"text": TEXT, "finish": "stop", "total": 16},
        "picture": TEXT,
        "stream": TEXT,
        "streamFinish": "stop",
        "streamTotal": 16,
        "reasoning": TRACE,
        "streamedReasoning": TRACE,
    }
