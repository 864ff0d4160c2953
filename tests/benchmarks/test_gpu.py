"""The script for a GPU: its commands work, and it says what failed."""

from __future__ import annotations

import json
import os
import re
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
    names = (
        *("environment", "check", "speed", "golden", "roofline", "memory", "launches-bf16", "launches-fp8", "images"),
        *("full-bf16", "full-fp8", "vision", "prefill-bf16", "prefill-fp8"),
        *("vision-linears", "prefill-linears", "full-linears"),
        *("golden-dependent", "full-dependent", "golden-streams", "full-streams", "throughput"),
    )
    assert set(files) == {f"gpu-{name}" for name in names}
    summary = done.stdout.splitlines()[-len(names) :]
    assert [line.partition(":")[0] for line in summary] == [f"gpu-{name}" for name in names]
    assert "gpu-golden: float32 4 of 4 equal" in done.stdout
    waits, golden = (
        done.stdout.find(f"$ {command}")
        for command in (
            "env -u TRITON_INTERPRET python3 -m benchmarks.aot --dependent",
            "python3 -m benchmarks.golden --device cpu --dtype float32 --option dependent_launch=true",
        )
    )
    assert 0 <= waits < golden
    for name, path in files.items():
        if name not in ("gpu-roofline", "gpu-memory"):  # which are the same everywhere
            assert json.loads(path.read_text())["environment"]["torch"]


def test_failures_are_told_last_and_take_no_other_stage_along(tmp_path: Path) -> None:
    broken = os.fspath(_broken(tmp_path))
    done = run("--dry-run", "--out", str(tmp_path), "environment", "kernels", PYTHONPATH=broken)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FAILED environment: exit code 3")
    assert {path.name for path in tmp_path.glob("*.json")} == {"gpu-speed.json"}
    assert "gpu-speed: 0 of 0 bars reached" in done.stdout


def test_every_stage_ends_within_ten_minutes() -> None:
    """By the limits of its commands, with what is compiled first wherever it may be, and ten seconds each to end in."""
    stages = dict(re.findall(r"^    (\w+)\)\n(.*?)^      ;;", SCRIPT.read_text(), flags=re.DOTALL | re.MULTILINE))
    assert (
        " ".join(stages)
        == "environment correctness kernels golden counts full parts linears dependent streams throughput"
    )
    for stage, commands in stages.items():
        looped = "".join(re.findall(r"for precision in bf16 fp8; do\n(.*?)done\n", commands, flags=re.DOTALL))
        limits = [int(seconds) + 10 for seconds in re.findall(r"\brun (\d+)", commands + looped)]
        limits += [160] * ("compile" in commands)
        assert 0 < sum(limits) <= 600, stage


def _broken(folder: Path) -> Path:
    """A place for a module search that ends any Python that is to measure the chip."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\nif 'benchmarks.kernels.measure' in sys.orig_argv:\n    os._exit(3)\n"
    )
    return folder


def test_unknown_words_show_the_usage() -> None:
    done = run("everything")
    assert done.returncode == 2
    assert "correctness   every kernel at real shapes against its twin" in done.stdout
