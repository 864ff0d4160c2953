"""What every benchmark prints: where it ran, a table, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mdinfer


class ResultError(Exception):
    """What keeps a result file from being read, and what to do about it."""


_NUMBER = re.compile(r"-|-?[\d.]+(e[-+]?\d+)?")


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and commit: what a figure is worth nothing without."""
    return {
        **(_gpu(device) if device.type == "cuda" else {"device": _cpu_name()}),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "mdinfer": mdinfer.__version__,
        "commit": _commit(),
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text in columns; numbers to the right, floats with two decimals."""
    cells = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    right = [all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        parts = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(columns)), line(["-" * w for w in widths]), *(line(row) for row in cells)])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(columns), ["---"] * len(columns), *cells])


def write_json(path: str | None, result: dict[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises ResultError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ResultError(f"{path} is no JSON: name files that a benchmark's --json wrote") from None
    if not isinstance(found, dict):
        raise ResultError(f"{path} is no result file: name files that a benchmark's --json wrote")
    return found


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _commit() -> str | None:
    """COMMIT of the environment where the tree was copied without its history."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return os.environ.get("COMMIT")
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    return _output("git", "-c", "safe.directory=*", *arguments)


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": properties.L2_cache_size / 2**20,
        "cuda": torch.version.cuda,
        "driver": (_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").split("\n")[0],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
