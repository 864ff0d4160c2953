"""The README's deployment on Ray Serve, as it stands there but for the model and the replicas' hardware."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[3]
KEY = "sk-ray"
QUESTION = {"model": "moondream3-preview", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("deployment")
    found = re.search(r"```python\n(# moondream_app.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    text = found[1]
    for old, new in (
        ('"moondream/moondream3-preview"', '"demo", kv_memory="64MiB"'),
        ('"num_gpus": 1', '"num_cpus": 0.5'),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "moondream_app.py").write_text(text)
    environment = {**os.environ, "MDINFER_API_KEY": KEY, "PYTHONPATH": f"{ROOT}:{folder}"}
    command = [str(Path(sys.executable).with_name("serve")), "run", "moondream_app:app"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(
            base_url="http://127.0.0.1:8000", headers={"authorization": f"Bearer {KEY}"}, timeout=60
        ) as http:
            _wait_until_ready(http)
            yield http
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run([str(Path(sys.executable).with_name("ray")), "stop", "--force"], capture_output=True, timeout=60)


def _wait_until_ready(http: httpx.Client) -> None:
    """Both replicas, of which each request meets one."""
    end, ready = time.monotonic() + 120, 0
    while ready < 10:
        assert time.monotonic() < end
        try:
            ready = ready + 1 if http.get("/ready").status_code == 200 else 0
        except httpx.TransportError:
            ready = 0
        if not ready:
            time.sleep(0.5)


def test_two_replicas_answer_their_shares(deployed: httpx.Client) -> None:
    assert httpx.post("http://127.0.0.1:8000/v1/chat/completions", json=QUESTION).status_code == 401
    assert httpx.get("http://127.0.0.1:8000/metrics").status_code == 401
    body = {**QUESTION, "temperature": 0}
    answers = [deployed.post("/v1/chat/completions", json=body) for _ in range(20)]
    assert [answer.status_code for answer in answers] == [200] * 20
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    shares = {
        int(found[1])
        for _ in range(40)
        if (found := re.search(r'completions",status="200"\} (\d+)', deployed.get("/metrics").text))
    }
    assert shares == {10} or (len(shares) == 2 and sum(shares) == 20), shares


def test_a_stream_and_a_client_that_leaves(deployed: httpx.Client) -> None:
    body = {**QUESTION, "stream": True, "logprobs": True}
    with deployed.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    with deployed.stream("POST", "/v1/chat/completions", json={**body, "max_tokens": 3000}) as response:
        next(response.iter_lines())
    end = time.monotonic() + 10
    while any("mdinfer_num_requests_running 0.0" not in deployed.get("/metrics").text for _ in range(12)):
        assert time.monotonic() < end
        time.sleep(0.2)
