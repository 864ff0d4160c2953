"""The command draws with matplotlib where it is, and else says what is missing; it is never imported otherwise."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import plot
from tests.benchmarks.test_series import RESULTS, decode, throughput

SOME = RESULTS / "cpu-200m-float32.json"


def test_without_matplotlib_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plot.main([str(SOME), "--out", str(tmp_path / "a.svg")]) == 2
    assert capsys.readouterr().err.endswith("plots need matplotlib: pip install 'mdinfer[plots]'\n")
    assert not list(tmp_path.iterdir())


def test_importing_it_imports_no_matplotlib() -> None:
    script = "import sys, benchmarks.plot, benchmarks.series; print('matplotlib' in sys.modules)"
    root = Path(plot.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "cannot be read"), ("{", "is no JSON"), ("[]", "is no result file"), ("{}", "nothing to draw")],
)
def test_files_that_hold_nothing_to_draw(
    content: str | None, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    assert plot.main([str(path), "--out", str(tmp_path / "a.svg")]) == 2
    assert what in capsys.readouterr().err


def test_other_formats_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main([str(SOME), "--out", str(tmp_path / "a.pdf")]) == 2
    assert "it must end in .svg or .png" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
class TestDrawn:
    def test_svg(self, tmp_path: Path) -> None:
        """The same file twice; the text is drawn as shapes, each with a comment that says what it is."""
        path = tmp_path / "result.json"
        path.write_text(json.dumps(throughput()))
        one, two = tmp_path / "1.svg", tmp_path / "2.svg"
        for out in (one, two):
            assert plot.main([str(path), str(SOME), "--out", str(out)]) == 0
        assert one.read_bytes() == two.read_bytes()
        for title in ("Decoding: a token of each sequence", "Requests/s, answers of 30 tokens"):
            assert f"<!-- {title} -->" in one.read_text()
        assert "<!-- Kestrel, published -->" in one.read_text()

    def test_png(self, tmp_path: Path) -> None:
        path, out = tmp_path / "result.json", tmp_path / "a.PNG"
        path.write_text(json.dumps(decode(800)))
        assert plot.main([str(path), "--out", str(out)]) == 0
        assert out.read_bytes().startswith(b"\x89PNG")

    def test_a_folder_that_is_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert plot.main([str(SOME), "--out", str(tmp_path / "none" / "a.svg")]) == 2
        assert "cannot be written" in capsys.readouterr().err
