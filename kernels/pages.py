"""Whole pages copied within the cache, of all layers at once: what a shared page needs before it is written to."""

from __future__ import annotations

import torch

from mdinfer.kernels import dispatch


def copy_pages(cache: torch.Tensor, source: torch.Tensor, into: torch.Tensor) -> None:
    """Copy page source[i] over page into[i] in every layer of `cache` (layers, P, ...), contiguous.

    source and into are (n,), int32 or int64, on the cache's device; no page of `into` is in `source` or twice there.
    """
    assert source.shape == into.shape and {source.dtype, into.dtype} <= {torch.int32, torch.int64}, (source, into)
    assert cache.is_contiguous() and source.is_contiguous() and into.is_contiguous()
    if dispatch.compiled(cache):
        from mdinfer.kernels._triton import pages

        pages.copy_pages(cache, source, into)
    else:
        copy_pages_torch(cache, source, into)


def copy_pages_torch(cache: torch.Tensor, source: torch.Tensor, into: torch.Tensor) -> None:
    """The torch body of `copy_pages`."""
    if cache.dtype.itemsize == 1:
        cache = cache.view(torch.uint8)
    cache[:, into] = cache[:, source]
