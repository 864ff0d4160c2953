"""Broken checkpoints and the check that they are refused with a message that says what and where."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mdinfer.checkpoint import find_checkpoint
from mdinfer.errors import CheckpointError
from tests.checkpoint.models import INT4, Weights, empty_targets, tiny_config
from tests.checkpoint.writers import fp8_names, published_names, random_canonical_weights, write_config, write_shards

CONFIG = tiny_config()
WEIGHTS = random_canonical_weights(CONFIG)
FP8_WEIGHTS = random_canonical_weights(CONFIG, fp8=True)
NORM = "model.text.blocks.1.ln.weight"
H2 = "text_model.transformer.h.2."


def refused(path: Path, pattern: str, *, experts: torch.dtype | None = None, untouched: bool = True) -> str:
    """Finding or loading `path` must be refused, and no parameter written to if the checks come first."""
    targets = empty_targets(CONFIG, experts=experts)
    with pytest.raises(CheckpointError, match=pattern) as raised:
        find_checkpoint(path).load_into(targets, progress=False)
    if untouched:
        assert all(
            (values == 255 if values.dtype is INT4 else values.float().isnan()).all() for values in targets.values()
        )
    return str(raised.value)


def published(directory: Path, change: Callable[[Weights], object], shards: int = 1) -> Path:
    tensors = published_names(WEIGHTS)
    change(tensors)
    write_config(directory, CONFIG)
    return write_shards(directory, tensors, shards)


def fp8(directory: Path, change: Callable[[Weights], object], weights: Weights = FP8_WEIGHTS) -> Path:
    tensors = fp8_names(weights, orig_mod=False, tau="fused")
    change(tensors)
    write_config(directory, CONFIG)
    return write_shards(directory, tensors, 1)


def put(name: str, values: Tensor) -> Callable[[Weights], object]:
    return lambda tensors: tensors.update({name: values})


def drop(*names: str) -> Callable[[Weights], object]:
    return lambda tensors: [tensors.pop(name) for name in names]


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
