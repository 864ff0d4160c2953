"""The demo checkpoint, changed so that no answer ends by itself: for tests of what happens while one is under way."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from mdinfer.loading import DEMO_DIRECTORY

NEVER = -1e4


def endless_demo(directory: Path) -> Path:
    """Written to `directory`, which is returned."""
    shutil.copytree(DEMO_DIRECTORY, directory, dirs_exist_ok=True)
    weights = load_file(directory / "model.safetensors")
    weights["model.text.lm_head.bias"][0] = NEVER  # the closing token's
    save_file(weights, directory / "model.safetensors")
    return directory
