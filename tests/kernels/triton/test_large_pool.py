"""Pages that begin beyond 2^31 numbers: a pool of tens of gigabytes has them, and 32-bit places would not reach them.

The pool is memory that nobody touches but for a few pages. It begins 2^31 bytes into its allocation, so that a place
that wrapped around reads and writes other memory of the test's own.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import AttentionBatch, LayerCache, TokenPlaces, rope_table
from mdinfer.kernels._triton import attention, decode_attention, pages, qkv
from tests.kernels.attention_twin import FP8
from tests.kernels.compare import randn

H, K = 2, 64
FAR = 1 << 31
ROOM = 8 * H * 128 * K  # four pages more, of keys and of values


@pytest.fixture
def memory(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Not poisoned, which would touch all of it."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    try:
        return torch.empty(3 * FAR + ROOM, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one
        pytest.skip(f"6 GiB of addresses: {error}")


def written(cache: LayerCache, at: list[int], device: torch.device) -> torch.Tensor:
    """Attention of a prompt over the pages `at`, and of one more token after it."""
    T, length, L = 21, 40, cache.page_size
    z = randn(length, 3 * H * K).to(device)
    position = torch.arange(length, device=device)
    table = torch.tensor([at], device=device)
    places = TokenPlaces.of(position, table[0, position // L], position % L, rope_table(length, K, device))
    tau = randn(2 * H, 3 * H * K, seed=1, scale=0.05).to(device), torch.ones(H, device=device)
    q = qkv.qkv_epilogue(z, *tau, places, cache, None)
    batch = AttentionBatch(
        starts=torch.tensor([0, T, T + 1], dtype=torch.int32, device=device),
        pages=table.int().expand(2, -1).contiguous(),
        visible=torch.tensor([*range(1, T + 1), length], dtype=torch.int32, device=device),
        queries=(T, 1),
    )
    q = torch.cat((q[:T], q[-1:]))
    out = torch.full_like(q, float("nan"))
    attention.prefill_attention(q, cache, batch, out)
    decode_attention.decode_attention(q, cache, batch, out)
    return out


@pytest.mark.parametrize("slots", [16, 128])
def test_keys_and_values(slots: int, memory: torch.Tensor, device: torch.device) -> None:
    """As those of the same tokens in a small cache, bit for bit."""
    count = FAR // (H * slots * K) + 4
    size = count * H * slots * K
    k, v = (memory[start : start + size].view(FP8).view(count, H, slots, K) for start in (FAR, FAR + size))
    scales = [torch.empty(count, H, slots, device=device) for _ in "kv"]
    far = LayerCache(k=k, v=v, k_scale=scales[0], v_scale=scales[1])
    near = LayerCache(
        **{name: torch.zeros(3, H, slots, K, dtype=FP8, device=device) for name in "kv"},
        **{name: torch.ones(3, H, slots, device=device) for name in ("k_scale", "v_scale")},
    )
    places = [count - 1, count - 4, count - 3]
    want, found = (written(cache, at, device) for cache, at in ((near, [0, 1, 2]), (far, places)))
    assert want.isfinite().all() and torch.equal(found, want)


def test_copies(memory: torch.Tensor, device: torch.device) -> None:
    width = 2047  # of no whole words: a place counts bytes
    count = FAR // width + 3
    pool = memory[FAR : FAR + count * width].view(1, count, width)
    pool[0, count - 2] = torch.arange(width, device=device) % 251
    pool[0, count - 1] = 255
    pages.copy_pages(pool, *(torch.tensor([count - i], dtype=torch.int32, device=device) for i in (2, 1)))
    assert torch.equal(pool[0, count - 1], pool[0, count - 2]) and pool[0, count - 1].any()
