"""Values that are not finite, or not finite in the parameter's type, are refused by the tensor's name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mdinfer.checkpoint import find_checkpoint
from mdinfer.errors import CheckpointError
from tests.checkpoint.models import FP8, INT4, INT8, Weights, empty_targets
from tests.checkpoint.refusals import CONFIG, H2, NORM, WEIGHTS, fp8, published, put, refused
from tests.checkpoint.writers import WRITERS


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("experts", [None, FP8, INT8, INT4], ids=["bf16", "fp8", "int8", "int4"])
@pytest.mark.parametrize("layout", WRITERS)
def test_non_finite(layout: str, experts: torch.dtype | None, value: float, tmp_path: Path) -> None:
    weights = {name: values.clone() for name, values in WEIGHTS.items()}
    weights["text.blocks.2.mlp.fc1.weight"][3, 5, 7] = value
    path = WRITERS[layout](tmp_path, CONFIG, weights)
    name = r"model\.text\.blocks\.2\.mlp\.fc1\.weight" if layout == "published" else r".*h\.2\.mlp\.experts\.weight"
    refused(path, rf"tensor {name} holds NaN or infinity, expected finite values", experts=experts, untouched=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_non_finite_linears(value: float, tmp_path: Path) -> None:
    weights = {name: values.clone() for name, values in WEIGHTS.items()}
    weights["text.blocks.1.attn.proj.weight"][3, 5] = value
    path, targets = WRITERS["published"](tmp_path, CONFIG, weights), empty_targets(CONFIG, linears=FP8)
    with pytest.raises(
        CheckpointError, match=r"tensor model\.text\.blocks\.1\.attn\.proj\.weight holds NaN or infinity"
    ):
        find_checkpoint(path).load_into(targets, progress=False)


@pytest.mark.parametrize("experts", [None, FP8, INT8, INT4], ids=["bf16", "fp8", "int8", "int4"])
@pytest.mark.parametrize("part", ["moe_quant.up_scale", "mlp.experts.weight"])
def test_non_finite_fp8(part: str, experts: torch.dtype | None, tmp_path: Path) -> None:
    def spoil(tensors: Weights) -> None:
        values = tensors[H2 + part].float().clone()
        values[2, 9] = float("nan")
        tensors[H2 + part] = values.to(tensors[H2 + part].dtype)

    name = re.escape(H2 + part)
    refused(fp8(tmp_path, spoil), rf"tensor {name} holds NaN or infinity", experts=experts, untouched=False)


def test_values_that_sum_to_infinity_are_fine(tmp_path: Path) -> None:
    """The quick check is a sum; what overflows it is looked at again."""
    huge = torch.full((64,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)
    targets = empty_targets(CONFIG)
    find_checkpoint(published(tmp_path, put(NORM, huge))).load_into(targets, progress=False)
    assert torch.equal(targets["text.blocks.1.ln.weight"], huge)


def test_values_too_large_for_the_parameter(tmp_path: Path) -> None:
    path = published(tmp_path, put(NORM, torch.full((64,), 1e5)))
    with pytest.raises(CheckpointError, match=rf"{NORM} has values too large for torch\.float16: load it as float32"):
        find_checkpoint(path).load_into(empty_targets(CONFIG, torch.float16), progress=False)
