"""Triton kernels on a GPU where there is one, otherwise on CPU tensors under Triton's interpreter.

Outputs are poisoned by the fixture of the folder above (on CUDA too: torch fills every uninitialised tensor).
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
