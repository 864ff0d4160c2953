from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mdinfer.errors import CheckpointError
from mdinfer.request import Caption, Chat, Detect, Point, Query
from mdinfer.result import XY, Box
from mdinfer.server.cli import main
from mdinfer.server.commands import loading
from tests.server.fake_engine import FakeEngine, Script

TEXT = "".join(Script().text)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that every command loads; its `loads` are the arguments it was loaded with."""
    engine = FakeEngine()

    def load(model: str, **options: Any) -> FakeEngine:
        engine.model_id = f"{model} {options}"
        return engine

    monkeypatch.setattr(loading, "load_engine", load)
    return engine


def test_query_streams_the_answer(engine: FakeEngine, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", str(picture), "--temperature", "0", "What?", "--stop", "a", "--stop", "b"]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    expected = Query(question="What?", image=picture.read_bytes(), temperature=0, stop=["a", "b"])
    assert engine.requests == [expected]
    assert engine.closed


def test_query_without_an_image(engine: FakeEngine) -> None:
    assert main(["query", "-", "What is 2 + 2?"]) == 0
    assert engine.requests == [Query(question="What is 2 + 2?")]


def test_reasoning_goes_to_stderr(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "-", "What?", "--reasoning"]) == 0
    captured = capsys.readouterr()
    assert captured.out == TEXT + "\n"
    assert captured.err == "Counting apples.\n"


def test_a_cut_answer_is_noted(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.script = Script(finish_reason="length")
    assert main(["query", "-", "What?"]) == 0
    assert "--max-tokens" in capsys.readouterr().err


def test_query_as_json(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "-", "What?", "--json", "--reasoning"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["answer"] == TEXT
    assert answer["reasoning"]["text"] == "Counting apples."
    assert answer["finish_reason"] == "stop"


def test_caption(engine: FakeEngine, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(picture), "--length", "short", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    [request] = engine.requests
    assert isinstance(request, Caption)
    assert (request.length, request.max_tokens) == ("short", 9)


@pytest.mark.parametrize(
    ("skill", "kind", "line"), [("detect", Detect, "0.1000 0.2000 0.3000 0.4000"), ("point", Point, "0.5000 0.2500")]
)
def test_places(
    engine: FakeEngine,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    skill: str,
    kind: type[Detect | Point],
    line: str,
) -> None:
    drawn = tmp_path / "out.png"
    assert main([skill, str(picture), "red car", "--draw", str(drawn), "--max-objects", "3"]) == 0
    assert capsys.readouterr().out == line + "\n"
    [request] = engine.requests
    assert isinstance(request, kind)
    assert (request.object, request.max_objects) == ("red car", 3)
    with Image.open(drawn) as after, Image.open(picture) as before:
        assert after.size == before.size
        assert after.convert("RGB").tobytes() != before.convert("RGB").tobytes()


def test_places_as_json(engine: FakeEngine, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.script = Script(objects=[Box(0, 0, 1, 1)], points=[XY(0, 1)])
    assert main(["detect", str(picture), "car", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == [{"x_min": 0, "y_min": 0, "x_max": 1, "y_max": 1}]


def test_nothing_found(engine: FakeEngine, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.script = Script(objects=[])
    assert main(["detect", str(picture), "unicorn"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no unicorn" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "missing.png", "What?"],
        ["query", "-", "What?", "--temperature", "9"],
        ["query", "-", "What?", "--max-batch-size", "0"],
        ["query", "-", "What?", "--device", "tpu"],
        ["detect", "missing.png", "x"],
        ["chat", "missing.png", "-m", "hi"],
        ["chat", "--json"],
        ["serve", "--host", "0.0.0.0"],
        ["serve", "--port", "70000"],
        ["serve", "--kv-memory", "much"],
        ["serve", "--max-body-mb", "nan"],
        ["serve", "--max-body-mb", "inf"],
        ["serve", "--max-body-mb", "1e306"],
        ["serve", "--max-body-mb", "0"],
        ["serve", "--host", "..", "--api-key", "x"],
        ["serve", "--served-model-name", "\udcff"],
        ["serve", "--tokenizer", "/nope/tokenizer.json"],
        ["query", "-", "What?", "--tokenizer", "/dev/zero"],
        ["query", "/dev/zero", "What?"],
        ["caption", "/dev"],
        ["chat", "a\0b", "-m", "hi"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments)[:60]),
)
def test_bad_input_is_one_line_and_status_2(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mdinfer: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not engine.requests


def test_a_pipe_is_no_image(engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert main(["caption", str(pipe)]) == 2
    assert f"{pipe}: not a regular file" in capsys.readouterr().err


def test_an_image_of_absurd_size(
    engine: FakeEngine, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "MAX_IMAGE_BYTES", 100)
    assert main(["caption", str(picture)]) == 2
    assert str(picture) in capsys.readouterr().err


@pytest.mark.parametrize("skill", ["detect", "point"])
@pytest.mark.parametrize("path", ["out.nonsense", "", "/nope/out.png", "/", "/proc/out.png", "."])
def test_a_drawing_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, picture: Path, capsys: pytest.CaptureFixture[str], skill: str, path: str
) -> None:
    def load(model: str, **options: Any) -> FakeEngine:
        raise AssertionError("--draw is checked before anything is loaded")

    monkeypatch.setattr(loading, "load_engine", load)
    monkeypatch.setattr(os, "access", lambda target, mode: not target.startswith("/proc"))
    assert main([skill, str(picture), "car", "--draw", path]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mdinfer: error: --draw {path or '(empty)'}: ")
    assert captured.err.count("\n") == 1


def test_other_failures_are_status_1(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(model: str, **options: Any) -> FakeEngine:
        raise CheckpointError(f"no tensor in {model}")

    monkeypatch.setattr(loading, "load_engine", load)
    assert main(["query", "-", "What?", "--model", "here"]) == 1
    assert capsys.readouterr().err == "mdinfer: error: no tensor in here\n"


def test_interrupt_cancels_and_is_status_130(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.script = Script(fault=KeyboardInterrupt(), fault_at=2)
    assert main(["query", "-", "What?"]) == 130
    assert engine.handles[0].cancelled.is_set()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["query", "-", "What?"], ["chat", "-m", "hi", "--json"], ["--help"]])
def test_a_full_disk(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments) == 1
    assert capsys.readouterr().err == "mdinfer: error: output: No space left on device\n"


def test_a_full_disk_for_both_streams(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as out, open("/dev/full", "w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert main(["query", "-", "What?", "--reasoning"]) == 1


def test_closed_streams(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["query", "-", "What?", "--reasoning"]) == 0
    assert main(["query", "-", "What?", "--temperature", "9"]) == 2
    assert main(["chat"]) == 0


@pytest.mark.parametrize(("extra", "expected"), [([], TEXT), (["--json"], None)])
def test_a_terminal_that_knows_ascii_only(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, extra: list[str], expected: str | None
) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    assert main(["query", "-", "What?", *extra]) == 0
    written = data.getvalue()
    if expected is None:
        assert json.loads(written)["answer"] == TEXT
    else:
        assert written == expected.encode("ascii", "replace") + b"\n"


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>&-", "| true"])
def test_output_that_goes_nowhere(redirection: str) -> None:
    """As a process: the interpreter's own last flush has nothing to complain of."""
    command = f"{sys.executable} -m mdinfer --help {redirection}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == (1 if redirection == ">/dev/full" else 0)
    assert "Exception" not in done.stderr
    assert "Traceback" not in done.stderr


SWALLOWING = """
import sys, time
print("importing", file=sys.stderr, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    pass
raise ImportError("numpy did not notice")
"""


@pytest.mark.parametrize("arguments", [["query", "-", "hi"], ["serve", "--port", "0"], ["doctor"]], ids=" ".join)
def test_an_interrupt_that_an_import_would_swallow(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(SWALLOWING)
    process = subprocess.Popen(
        [sys.executable, "-m", "mdinfer", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        # As at a terminal: under nohup, or behind a script's `&`, the session itself ignores interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_interrupts_are_exceptions_again_after_loading(engine: FakeEngine) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main(["query", "-", "What?"]) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_tokenizer_is_passed_on(engine: FakeEngine) -> None:
    tokenizer = str(Path(__file__))
    assert main(["query", "-", "What?", "--model", "m", "--tokenizer", tokenizer]) == 0
    assert engine.model_id == f"m { ({'tokenizer': tokenizer}) }"


def test_engine_options_are_passed_on(engine: FakeEngine) -> None:
    assert main(["query", "-", "What?", "--model", "m", "--kv-memory", "1GiB", "--dtype", "float32"]) == 0
    assert engine.model_id == "m {'dtype': 'float32', 'kv_memory': '1GiB'}"


def test_chat_with_one_message(engine: FakeEngine, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(picture), "-m", "What?", "--system", "Be brief."]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    [request] = engine.requests
    assert isinstance(request, Chat)
    parts = [{"type": "image", "image": picture.read_bytes()}, {"type": "text", "text": "What?"}]
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
    ]


def test_chat_as_json(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-m", "What?", "--json", "--reasoning"]) == 0
    expected = {"content": TEXT, "reasoning": "Counting apples.", "finish_reason": "stop"}
    assert json.loads(capsys.readouterr().out) == expected


def test_a_conversation(
    engine: FakeEngine, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"Hi\n\nAnd now?\n/new\n/image {picture}\nWhat is it?\n/quit\nnever said\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == f"{TEXT}\n" * 3
    roles = [[message["role"] for message in getattr(request, "messages", ())] for request in engine.requests]
    assert roles == [["user"], ["user", "assistant", "user"], ["user"]]
    last: list[Any] = getattr(engine.requests[-1], "messages", [])
    assert last[0]["content"][0]["image"] == picture.read_bytes()


def test_a_conversation_from_a_pipe_ends_at_a_fault(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/image missing.png\nHi\n"))
    assert main(["chat"]) == 2
    assert "missing.png" in capsys.readouterr().err
    assert not engine.requests


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "python", "devices", "kernels", "The demo can run"):
        assert word in text


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["demo_can_run"] is True
    assert diagnosis["problems"] == []
    assert diagnosis["versions"]["torch"]
    assert diagnosis["devices"][0]["name"] == "cpu"


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "pip install safetensors" in text
    assert "pip install triton" in text
    assert "The demo cannot run" in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"], ["query", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "mdinfer" in capsys.readouterr().out


QUICK = """
import importlib.machinery, sys, types
package = types.ModuleType("mdinfer")
package.__path__ = [sys.argv[1]]
package.__version__ = "0"
sys.modules["mdinfer"] = package
from mdinfer.server.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print({"torch", "numpy", "starlette", "uvicorn", "PIL"} & set(sys.modules))
"""


def test_the_command_line_imports_nothing_heavy() -> None:
    """Without the package's own __init__, which decides for itself what `import mdinfer` costs."""
    package = str(Path(loading.__file__).resolve().parents[2] / "mdinfer")
    done = subprocess.run([sys.executable, "-c", QUICK, package], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n"), done.stdout
