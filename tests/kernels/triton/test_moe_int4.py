"""Experts in int4 at awkward sizes, of both paths, against loops in float64; the tolerance is `test_moe_experts`'s."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mdinfer.kernels._triton import moe_configs, moe_grouped, moe_small_int4
from mdinfer.kernels._triton.launch import Config
from tests.kernels.compare import randn
from tests.kernels.triton.test_moe_experts import DTYPES, check, int4_tolerance

# (T, E, A, D, I): inputs of less than a group, of two, of two and a part of a third.
INT4_FEW = [(1, 8, 2, 64, 32), (3, 16, 3, 20, 12), (1, 3, 1, 270, 11), (1, 4, 2, 24, 256), (1, 4, 3, 256, 20)]
INT4_FEW += [(1, 4, 3, 12, 260)]
INT4_MANY = [(5, 8, 2, 64, 32), (17, 64, 8, 20, 12), (3, 2, 2, 270, 11), (9, 4, 1, 24, 256), (20, 4, 2, 128, 130)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "E", "A", "D", "inner"), INT4_FEW + INT4_MANY, ids=str)
def test_int4_experts(T: int, E: int, A: int, D: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
    check(randn(T, E), A, D, inner, dtype, device, int4=True, bound=int4_tolerance(dtype))


def test_int4_rows_and_choices_taken_in_steps(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(moe_small_int4, "BLOCK_B", 32)
    monkeypatch.setattr(moe_small_int4, "BLOCK_A", 2)
    for T, E, A, D, inner in ((1, 8, 3, 70, 20), (2, 8, 4, 140, 24)):
        check(randn(T, E), A, D, inner, torch.float32, device, int4=True, bound=int4_tolerance(torch.float32))


@pytest.mark.parametrize("block_k", [32, 64, 128])
def test_int4_groups_taken_in_steps(block_k: int, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """For many tokens, as where shared memory is small."""
    whole = moe_configs.product_config

    def narrow(*args: Any, **options: Any) -> Config:
        config = whole(*args, **options)
        return replace(config, blocks={**config.blocks, "BLOCK_K": block_k})

    monkeypatch.setattr(moe_grouped, "product_config", narrow)
    check(randn(9, 4), 2, 140, 80, torch.float32, device, int4=True, bound=int4_tolerance(torch.float32))
