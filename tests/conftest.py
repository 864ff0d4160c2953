"""Shared by all tests: hypothesis settings, and engines on the tiny checkpoints, loaded once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Before anything imports Triton: without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import mdinfer
from tests.golden_data import load_engine

# The same examples on every run and no time limit on one, so that a slow machine fails nothing.
settings.register_profile("mdinfer", derandomize=True, deadline=None, database=None)
settings.load_profile("mdinfer")


@pytest.fixture(scope="session")
def engine_a() -> Iterator[mdinfer.Engine]:
    """tiny-a by the golden data's rules; shared, so no test may close or break it."""
    with load_engine("tiny-a") as engine:
        yield engine


@pytest.fixture(scope="session")
def engine_b() -> Iterator[mdinfer.Engine]:
    with load_engine("tiny-b") as engine:
        yield engine


@pytest.fixture(scope="session")
def engines(engine_a: mdinfer.Engine, engine_b: mdinfer.Engine) -> dict[str, mdinfer.Engine]:
    return {"tiny-a": engine_a, "tiny-b": engine_b}
