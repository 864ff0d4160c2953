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
@pytest.mark.parametrize("whole", [torch.int32, torch.int64], ids=str)
def test_pages_are_copied(
    whole: torch.dtype, count: int, shape: tuple[int, ...], dtype: torch.dtype, body: Body, device: torch.device
) -> None:
    cache = randn(*shape).to(dtype).to(device)
    before = cache.clone()
    source, into = (torch.tensor(pages, dtype=whole)[:count].to(device) for pages in ([3, 0], [1, 2]))
    body(cache, source, into)
    for page in range(shape[1]):
        origin = {1: 3, 2: 0}.get(page, page) if page in into.tolist() else page
        assert torch.equal(cache[:, page].view(torch.uint8), before[:, origin].view(torch.uint8))


def test_page_numbers_of_another_kind_are_refused(device: torch.device) -> None:
    cache, source = torch.zeros(2, 4, 2, 8, device=device), torch.tensor([3, 0], device=device)
    for odd in (source.float(), torch.zeros(4, dtype=torch.int64, device=device)[::2]):
        with pytest.raises(AssertionError):
            pages.copy_pages(cache, source, odd)
    with pytest.raises(AssertionError):
        pages.copy_pages(cache.transpose(0, 1), source, source + 1)
