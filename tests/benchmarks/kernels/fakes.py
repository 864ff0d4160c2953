"""Cases of plain torch, and work that fails in every way, for tests of what runs them."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from benchmarks.kernels.apart import Record
from benchmarks.kernels.case import Call, Case, randn


def case(op: str = "double", run: Call = lambda x: 2 * x, **fields: Any) -> Case:
    """Twice a tensor of 4 x 64, unless told otherwise."""
    given: dict[str, Any] = {
        "shape": "4x64",
        "inputs": lambda device: (randn(4, 64, device=device, dtype=torch.float32),),
        "twin": lambda x: 2 * x.double(),
        "bound": 1e-6,
        "why": "float32",
        **fields,
    }
    return Case(op=op, run=run, **given)


def work(what: str) -> Record:
    """Succeeds, or fails as told."""
    if what == "raise":
        raise ValueError("no good\nand more of it")
    if what == "die":
        os._exit(7)
    if what == "hang":
        time.sleep(600)
    return {"process": os.getpid(), "what": what}
