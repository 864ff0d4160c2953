"""The script for a GPU: its commands work, and it says what failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env={**os.environ, **python, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_stage(tmp_path: Path) -> None:
    done = run("--dry-run", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    files = {path.stem: path for path in tmp_path.glob("*.json")}
    names = ("environment", "check", "speed", "golden", "full-bf16", "full-fp8")
    assert set(files) == {f"gpu-{name}" for name in names}
    summary = done.stdout.splitlines()[-len(names) :]
    assert [line.partition(":")[0] for line in summary] == [f"gpu-{name}" for name in names]
    assert "gpu-golden: float32 4 of 4 equal" in done.stdout
    for path in files.values():
        assert json.loads(path.read_text())["environment"]["torch"]


def test_failures_are_told_last(tmp_path: Path) -> None:
    done = run("--dry-run", "--out", str(tmp_path), "environment", PYTHONPATH=os.fspath(_broken(tmp_path)))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FAILED environment: exit code 3")


def _broken(folder: Path) -> Path:
    """A place for a module search that ends any Python that is to measure."""
    (folder / "sitecustomize.py").write_text("import os, sys\nif '--json' in sys.orig_argv:\n    os._exit(3)\n")
    return folder


def test_unknown_words_show_the_usage() -> None:
    done = run("everything")
    assert done.returncode == 2
    assert "correctness   every kernel at real shapes against its twin" in done.stdout
