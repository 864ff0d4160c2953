"""Page copies, by the compiled body and the torch one: exact, whatever the numbers mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mdinfer.kernels import pages
from mdinfer.kernels._triton.pages import copy_pages
from tests.kernels.compare import randn

Body = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("body", [copy_pages, pages.copy_pages_torch], ids=["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4, 64), (1, 4, 1, 3, 1), (3, 4, 2, 32, 8)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_pages_are_copied(
    count: int, shape: tuple[int, ...], dtype: torch.dtype, body: Body, device: torch.device
) -> None:
    cache = randn(*shape).to(dtype).to(device)
    before = cache.clone()
    source, into = torch.tensor([3, 0])[:count].to(device), torch.tensor([1, 2])[:count].to(device)
    body(cache, source, into)
    for page in range(shape[1]):
        origin = {1: 3, 2: 0}.get(page, page) if page in into.tolist() else page
        assert torch.equal(cache[:, page].view(torch.uint8), before[:, origin].view(torch.uint8))
