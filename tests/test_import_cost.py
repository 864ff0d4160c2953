"""Importing the library after torch is quick and touches neither a GPU nor Triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LIMIT_S = 0.2
SCRIPT = """
import json, sys, time
import torch
before, start = set(sys.modules), time.process_time()
import mdinfer
mdinfer.Engine
spent, new = time.process_time() - start, sorted(set(sys.modules) - before)
print(json.dumps({"spent": spent, "new": new, "cuda": torch.cuda.is_initialized()}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """One run to compile the modules, as an installation has them, then up to three until one is quick enough.

    Time is the process's own, so that a busy machine does not count.
    """
    cache = tmp_path_factory.mktemp("bytecode")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(cache)}
    command = [sys.executable, "-c", SCRIPT]
    found: list[Any] = []
    for _ in range(4):
        done = subprocess.run(command, env=environment, cwd=cache, check=True, capture_output=True)
        found.append(json.loads(done.stdout))
        if len(found) > 1 and found[-1]["spent"] < LIMIT_S:
            break
    return found[1:]


def test_the_import_is_quick(runs: list[Any]) -> None:
    assert min(run["spent"] for run in runs) < LIMIT_S


def test_names_alone_do_not_wait_for_torch() -> None:
    script = "import sys, mdinfer; print(sorted({'torch', 'PIL', 'tokenizers'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_triton_and_no_gpu(runs: list[Any]) -> None:
    for run in runs:
        assert not any(name.split(".")[0] == "triton" for name in run["new"])
        assert not run["cuda"]


def test_nothing_that_a_request_does_not_need(runs: list[Any]) -> None:
    """Servers, hubs and progress bars are imported by whoever uses them."""
    heavy = {"huggingface_hub", "tqdm", "starlette", "uvicorn", "msgspec", "requests", "httpx", "transformers"}
    assert not heavy & {name.split(".")[0] for name in runs[0]["new"]}
