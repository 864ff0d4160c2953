from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import GOLDEN, Live, live_server


@pytest.fixture(scope="session")
def picture() -> Path:
    return GOLDEN / "images" / "p_100x80.png"


@pytest.fixture(scope="session")
def data_url(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeEngine, Live]]:
    engine = FakeEngine()
    with live_server(engine, max_body_bytes=1 << 20, max_images=3, ping_interval=0.2, body_timeout=1.0) as live:
        yield engine, live


@pytest.fixture
def fake(shared: tuple[FakeEngine, Live]) -> FakeEngine:
    """The engine behind `live`, fresh."""
    engine, _ = shared
    engine.script, engine.healthy = Script(), True
    engine.requests.clear()
    engine.handles.clear()
    engine.namespaces.clear()
    return engine


@pytest.fixture
def live(shared: tuple[FakeEngine, Live], fake: FakeEngine) -> Live:
    return shared[1]
