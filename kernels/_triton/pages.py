"""Page copies: a page of one layer is one run of bytes, moved by 8 whatever they mean."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, launch

# 8 KiB a program, all of it in flight at once: 64 bytes a thread. Not measured.
CONFIGS = {8: Config(blocks={"BLOCK": 1024}, warps=4), 1: Config(blocks={"BLOCK": 1024}, warps=4)}
_WORDS = {8: torch.int64, 1: torch.uint8}


@triton.jit(do_not_specialize=["source_ptr", "into_ptr"])
def copy_pages_kernel(cache_ptr, source_ptr, into_ptr, pages, size, BLOCK: tl.constexpr, PDL: tl.constexpr):
    wait_for_earlier(PDL)
    copy, layer = tl.program_id(1), tl.program_id(2).to(tl.int64)  # with int32 pages too, places are int64
    source, into = tl.load(source_ptr + copy), tl.load(into_ptr + copy)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    words = tl.load(cache_ptr + (layer * pages + source) * size + at, mask=inside)
    tl.store(cache_ptr + (layer * pages + into) * size + at, words, mask=inside)


def copy_pages(cache: torch.Tensor, source: torch.Tensor, into: torch.Tensor) -> None:
    layers, pages = cache.shape[:2]
    nbytes = math.prod(cache.shape[2:]) * cache.element_size()
    word = 8 if nbytes % 8 == 0 else 1
    words = cache.view(layers, pages, -1).view(_WORDS[word])
    size, config = nbytes // word, CONFIGS[word]  # an argument, so that numbers and their scales share what is compiled
    grid = (-(-size // config.blocks["BLOCK"]), len(source), layers)
    launch(copy_pages_kernel, grid, words, source, into, pages, size, config=config)
