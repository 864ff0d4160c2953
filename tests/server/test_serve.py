"""`mdinfer serve` as a process: what it prints, how it ends."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mdinfer.errors import ConfigError
from mdinfer.server import serving as serving_module
from mdinfer.server.cli import main
from mdinfer.server.commands.serve import keys_of, model_names
from mdinfer.server.settings import DEFAULT_MODEL_NAMES, Settings
from tests.endless import endless_demo
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import MODEL, wait_until

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its URL, as soon as it listens."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "mdinfer.server.cli", "serve", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MDINFER_API_KEY": ""},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"listening on (http://\S+),", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def wait_for(url: str, path: str, status: int) -> None:
    wait_until(lambda: httpx.get(url + path, timeout=60).status_code == status, 60)


def test_from_start_to_sigterm() -> None:
    with serving("demo", "--port", "0", "--api-key", "sk-1") as (process, url):
        assert httpx.get(f"{url}/health").status_code == 200
        wait_for(url, "/ready", 200)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        headers = {"authorization": "Bearer sk-1"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] <= 5
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the demo checkpoint is tiny" in out
    assert f"curl {url}/v1/chat/completions" in out
    assert "sk-1" not in out + err
    assert "Traceback" not in err
    assert re.search(r"POST /v1/chat/completions 200 .* req_", err)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_printed_curl_line_works() -> None:
    with serving("demo", "--port", "0") as (process, url):
        wait_for(url, "/ready", 200)
        assert process.stdout is not None
        printed = ""
        while "-d " not in printed:
            printed += process.stdout.readline()
        line = printed[printed.index("curl ") :].strip() + " --silent --max-time 60"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=90)
        assert json.loads(done.stdout)["choices"][0]["finish_reason"] in ("stop", "length")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(str(endless_demo(tmp_path)), "--port", "0") as (process, url):
        wait_for(url, "/ready", 200)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        body |= {"max_tokens": 4096, "temperature": 0, "logprobs": True}  # so that tokens without text are sent too
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert process.poll() is None, "the stream is given time to finish"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=15) == 143  # the stream had 30 s
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()


def test_a_reader_of_stdout_that_leaves() -> None:
    with serving("demo", "--port", "0") as (process, url):
        assert process.stdout is not None
        process.stdout.close()
        wait_for(url, "/ready", 200)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert all(line.startswith("mdinfer: ") for line in err.splitlines())


@pytest.mark.parametrize("model", ["/nowhere/at/all", "x" * 5000])
def test_a_model_that_is_not_there(model: str) -> None:
    with serving(model, "--port", "0") as (process, _):
        _, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    assert err.startswith("mdinfer: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "mdinfer.server.cli", "serve", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"mdinfer: error: 127.0.0.1:{port} cannot be bound")


def test_everything_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the team\n\nthird\nfirst\n", encoding="utf-8")
    stated = {
        "MODEL": "demo",
        "HOST": "0.0.0.0",
        "PORT": "0",
        "API_KEY": "first,second",
        "API_KEY_FILE": str(keys),
        "INSECURE": "yes",
        "CORS_ORIGIN": "https://a.example, https://b.example",
        "MAX_BODY_MB": "2",
        "MAX_IMAGES": "3",
        "REQUEST_TIMEOUT": "4.5",
        "BODY_TIMEOUT": "5",
        "DRAIN_TIMEOUT": "6",
        "SERVED_MODEL_NAME": "mine",
        "REASONING_ALIAS": "reasoning_content",
        "LOG_LEVEL": "error",
        "LOG_FORMAT": "json",
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "EXPERTS": "bf16",
        "LINEARS": "fp8",
        "KV_DTYPE": "bf16",
        "KV_MEMORY": "1GiB",
        "MAX_BATCH_SIZE": "7",
        "MAX_CONTEXT": "512",
        "MAX_QUEUE": "8",
        "PREFILL_TOKENS": "9",
        "CPU_THREADS": "1",
        "RESIZE": "device",
        "IMAGE_THREADS": "1",
        "MAX_IMAGE_PIXELS": "1000",
        "NO_PREFIX_CACHE": "1",
        "TOKENIZER": str(keys),
    }
    assert {f"MDINFER_{name}" for name in stated} == set(re.findall(r"\[(MDINFER_\w+)\]", help_of_serve()))
    for name, value in stated.items():
        monkeypatch.setenv(f"MDINFER_{name}", value)
    served = arguments_of_serve(monkeypatch, ["--port", "81", "--served-model-name", "flag"])
    model, options, settings = served.pop("args")
    assert (model, served) == ("demo", {"log_level": "error", "log_format": "json"})
    assert (settings.host, settings.port, settings.insecure) == ("0.0.0.0", 81, True)
    assert settings.api_keys == ("first", "second", "third")
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert (settings.max_body_bytes, settings.max_images, settings.request_timeout) == (2 << 20, 3, 4.5)
    assert (settings.body_timeout, settings.drain_timeout) == (5, 6)
    assert settings.model_names == ("flag", *DEFAULT_MODEL_NAMES, "demo")
    assert settings.reasoning_alias == "reasoning_content"
    assert options == {
        "device": "cpu",
        "dtype": "float32",
        "experts": "bf16",
        "linears": "fp8",
        "kv_dtype": "bf16",
        "kv_memory": "1GiB",
        "max_batch_size": 7,
        "max_context": 512,
        "max_queue": 8,
        "prefill_tokens": 9,
        "cpu_threads": 1,
        "resize": "device",
        "image_threads": 1,
        "max_image_pixels": 1000,
        "prefix_cache": False,
        "tokenizer": str(keys),
    }


def test_an_empty_name_of_a_key_file_is_no_open_door(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving_module, "serve", lambda *_, **__: 0)
    assert main(["serve", "--api-key-file", ""]) == 2
    assert "--api-key-file (empty)" in capsys.readouterr().err


def test_a_key_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbfsk-a\r\nsk-b\r\n")
    assert keys_of(str(path)) == ["sk-a", "sk-b"]


def test_the_curl_line_is_quoted() -> None:
    settings = Settings(model_names=('it\'s "mine"',))
    text = serving_module._banner(FakeEngine(), "demo", settings, "http://127.0.0.1:1", 2.0, 0.5)
    words = shlex.split(text[text.index("curl ") :].replace("\\\n", " "))
    assert json.loads(words[words.index("-d") + 1])["model"] == 'it\'s "mine"'


@pytest.mark.parametrize(
    "options",
    [
        {"request_timeout": 1e300},
        {"body_timeout": math.inf},
        {"drain_timeout": math.nan},
        {"reasoning_alias": "content"},
        {"cors_origins": ("https://a.example/",)},
        {"cors_origins": ("a.example",)},
        {"cors_origins": ("https://A.example",)},
        {"cors_origins": ("",)},
    ],
    ids=str,
)
def test_settings_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options)).replace("cors_origins", "CORS")):
        Settings(**options)
    Settings(cors_origins=("*", "http://localhost:3000", "chrome-extension://abc"), request_timeout=1e9)


def test_a_zero_on_the_command_line_wins_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDINFER_PORT", "81")
    _, _, settings = arguments_of_serve(monkeypatch, ["--port", "0"])["args"]
    assert settings.port == 0


def help_of_serve() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mdinfer.server.cli", "serve", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "500"},
    )
    return done.stdout


def arguments_of_serve(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of its options, without a server."""
    caught: dict[str, Any] = {}

    def serve(*args: Any, **options: Any) -> int:
        caught.update(args=args, **options)
        return 0

    monkeypatch.setattr(serving_module, "serve", serve)
    assert main(["serve", *arguments]) == 0
    return caught


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "many"),
        ("INSECURE", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("MAX_IMAGES", "1.5"),
        ("API_KEY_FILE", "/nope/keys"),
        ("API_KEY_FILE", os.devnull),
        ("API_KEY", " , "),
        ("CORS_ORIGIN", "https://a.example, b.example"),
    ],
)
def test_a_bad_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(f"MDINFER_{name}", value)
    assert main(["serve", "--port", "0"] if name != "PORT" else ["serve"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mdinfer: error: ")
    assert f"MDINFER_{name}" in error or "--api-key-file" in error or "'b.example'" in error
    assert error.count("\n") == 1


def test_a_setting_no_float_can_hold() -> None:
    assert Settings(max_images=10**400).max_images == 10**400


@pytest.mark.parametrize(
    ("model", "more", "expected"),
    [
        ("demo", [], (*DEFAULT_MODEL_NAMES, "demo")),
        (DEFAULT_MODEL_NAMES[0], [], DEFAULT_MODEL_NAMES),
        ("./checkpoint", ["mine"], ("mine", *DEFAULT_MODEL_NAMES)),
        ("/models/x", [], DEFAULT_MODEL_NAMES),
        ("owner/other", ["a", "a"], ("a", *DEFAULT_MODEL_NAMES, "owner/other")),
        ("x" * 5000, [], (*DEFAULT_MODEL_NAMES, "x" * 5000)),
        ("a\0b", [], (*DEFAULT_MODEL_NAMES, "a\0b")),
    ],
)
def test_model_names(model: str, more: list[str], expected: tuple[str, ...]) -> None:
    assert model_names(model, more) == expected
