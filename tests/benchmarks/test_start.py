from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import start


def test_a_start_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "start.json"
    start.main(["--rounds", "1", "--tokens", "20", "--json", str(path)])
    [found] = json.loads(path.read_text())["rounds"]
    assert 0 < found["listening_s"] < found["first_answer_s"]
    assert found["tokens_per_s"] > 0
    assert "first answer" in capsys.readouterr().out


def test_a_server_that_cannot_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no directory and no file"):
        start.main(["--rounds", "1", "--model", str(tmp_path / "nothing")])
