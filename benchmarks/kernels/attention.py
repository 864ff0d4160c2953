"""Prefill and decode attention over pages, the QKV epilogue before them, and page copies."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.case import Case, Inputs, randn
from mdinfer.kernels import AttentionBatch, LayerCache, TokenPlaces
from mdinfer.kernels._triton import attention, decode_attention, pages, qkv
from mdinfer.kernels.attention import paged_attention_torch
from mdinfer.kernels.pages import copy_pages_torch
from mdinfer.kernels.qkv import qkv_epilogue_torch
from mdinfer.kernels.quantise import quantise_rows_torch

H, K, L = 32, 64, 32  # heads, their dims, slots of a page
IMAGE, TEXT = 730, 45  # positions of an image block with BOS, and of a question
FP8 = torch.float8_e4m3fn
_OTHERS = {"float16": torch.float16, "float32": torch.float32}
_WHY = (
    "the output is rounded to bfloat16 by 2^-8 of its size at most, 0.29 * 2^-7 on average; the weights before it "
    "too, apart from each other, so that the sum over keys errs by less"
)
_FLOAT32, _FLOAT32_WHY = 1e-5, "sums of up to some thousand numbers in float32, each rounded by 2^-24"
_CACHE_WHY = "fp8 rows err by 2^-4 / sqrt(3) at most, and both bodies round the same numbers, apart from near-ties"


def cases() -> list[Case]:
    return [
        *(_decode([context] * B, torch.bfloat16) for B in (1, 4, 16, 64) for context in (800, 2000)),
        *(_decode([800] * B, FP8) for B in (1, 64)),
        *(_decode([800] * 64, dtype, dtype) for dtype in (torch.float16, torch.float32)),
        *(_decode(_ragged(B), stored) for B in (4, 64) for stored in (torch.bfloat16, FP8)),
        _prefill("775", [(0, IMAGE + TEXT)]),
        _prefill("775-fp8", [(0, IMAGE + TEXT)], FP8),
        _prefill("8x775", [(0, IMAGE + TEXT)] * 8),
        _prefill("8x775-fp8", [(0, IMAGE + TEXT)] * 8, FP8),
        *(_prefill(f"775-{name}", [(0, IMAGE + TEXT)], t, t) for name, t in _OTHERS.items()),
        _prefill("45-resumed", [(IMAGE, IMAGE + TEXT)]),
        _prefill("8x45-resumed", [(IMAGE, IMAGE + TEXT)] * 8),
        _prefill("8x45-resumed-fp8", [(IMAGE, IMAGE + TEXT)] * 8, FP8),
        *(_epilogue(T, stored) for T in (1, 16, 64, 775, 6200) for stored in (torch.bfloat16, FP8)),
        *(_epilogue(775, t, t) for t in _OTHERS.values()),
        *(_copy(count, stored) for count in (1, 8) for stored in (torch.bfloat16, FP8)),
    ]


def _cache(count: int, stored: torch.dtype, device: torch.device) -> LayerCache:
    rows = [randn(count, H, L, K, device=device) for _ in "kv"]
    if stored != FP8:
        return LayerCache(k=rows[0].to(stored), v=rows[1].to(stored))
    k, v = (quantise_rows_torch(row.view(-1, K)) for row in rows)
    shape = (count, H, L)
    return LayerCache(
        k=k[0].view(*shape, K), v=v[0].view(*shape, K), k_scale=k[1].view(shape), v_scale=v[1].view(shape)
    )


def _batch(spans: list[tuple[int, int]], device: torch.device) -> AttentionBatch:
    """Sequences of which the positions start .. end - 1 are queries; the first IMAGE positions are one block."""
    queries = tuple(end - start for start, end in spans)
    each = -(-max(end for _, end in spans) // L)
    # A sequence's pages lie anywhere, as after hours of service.
    order = torch.randperm(each * len(spans), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    visible = [max(p + 1, IMAGE) if end - start > 1 else p + 1 for start, end in spans for p in range(start, end)]
    return AttentionBatch(
        starts=torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32).to(device),
        pages=order.view(len(spans), each).to(device),
        visible=torch.tensor(visible, dtype=torch.int32).to(device),
        queries=queries,
    )


def _run(q: torch.Tensor, layer: LayerCache, batch: AttentionBatch, *_: Any) -> torch.Tensor:
    out = torch.empty_like(q)
    attention.prefill_attention(q, layer, batch, out)
    decode_attention.decode_attention(q, layer, batch, out)
    return out


def _twin(q: torch.Tensor, layer: LayerCache, batch: AttentionBatch, *_: Any) -> torch.Tensor:
    return paged_attention_torch(q.double(), layer, batch)


def _ragged(B: int) -> list[int]:
    """Contexts of 800 to 2000 in no order, as the requests of a busy server have them."""
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    contexts: list[int] = torch.linspace(800, 2000, B).round().int()[order].tolist()
    return contexts


def _decode(contexts: list[int], stored: torch.dtype, dtype: torch.dtype = torch.bfloat16) -> Case:
    B, most, even = len(contexts), max(contexts), len(set(contexts)) == 1
    spans = [(context - 1, context) for context in contexts]
    length = str(most) if even else f"{min(contexts)}..{most}"

    def inputs(device: torch.device) -> Inputs:
        batch = _batch(spans, device)
        q = randn(B, H, K, device=device, dtype=dtype)
        plain = [randn(B, H, most, K, device=device, dtype=dtype) for _ in "kv"]
        return q, _cache(batch.pages.numel(), stored, device), batch, *plain

    def sdpa(q: torch.Tensor, layer: LayerCache, batch: AttentionBatch, k: torch.Tensor, v: torch.Tensor) -> Any:
        return F.scaled_dot_product_attention(q[:, :, None], k, v)

    row = K * stored.itemsize + (4 if stored == FP8 else 0)
    return Case(
        op="decode_attention",
        shape=f"{B}x{length}-{'fp8' if stored == FP8 else str(stored).removeprefix('torch.')}",
        inputs=inputs,
        run=_run,
        twin=_twin,
        bound=_FLOAT32 if dtype == torch.float32 else 6e-3,
        why=_FLOAT32_WHY if dtype == torch.float32 else _WHY,
        rivals={f"sdpa, keys in one run{'' if even else ', all of the longest'}": sdpa},
        bytes=2 * H * sum(contexts) * row,
        flops=4 * H * sum(contexts) * K,
        bar=("bytes", 0.75) if B == 64 and dtype != torch.float32 else None,
    )


def _prefill(
    shape: str,
    spans: list[tuple[int, int]],
    stored: torch.dtype = torch.bfloat16,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    T = sum(end - start for start, end in spans)

    def inputs(device: torch.device) -> Inputs:
        batch = _batch(spans, device)
        layer = _cache(batch.pages.numel(), stored, device)
        plain = [randn(len(spans), H, IMAGE + TEXT, K, device=device, dtype=dtype) for _ in "kv"]
        return randn(T, H, K, device=device, dtype=dtype), layer, batch, *plain

    def shaped(q: torch.Tensor) -> torch.Tensor:
        return q.view(len(spans), -1, H, K).transpose(1, 2)

    def flash(q: torch.Tensor, layer: LayerCache, batch: AttentionBatch, k: torch.Tensor, v: torch.Tensor) -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(shaped(q), k, v, is_causal=True)

    def flex(q: torch.Tensor, layer: LayerCache, batch: AttentionBatch, k: torch.Tensor, v: torch.Tensor) -> Any:
        call, mask = _flex(spans[0], str(q.device))
        return call(shaped(q), k, v, block_mask=mask)

    whole = spans[0][0] == 0 and dtype != torch.float32  # which flash attention does not have
    pairs = sum(max(p + 1, IMAGE) for start, end in spans for p in range(start, end))
    row = K * stored.itemsize + (4 if stored == FP8 else 0)
    return Case(
        op="prefill_attention",
        shape=shape,
        inputs=inputs,
        run=_run,
        twin=_twin,
        bound=_FLOAT32 if dtype == torch.float32 else 6e-3,
        why=_FLOAT32_WHY if dtype == torch.float32 else _WHY,
        rivals={"flex attention": flex} | ({"sdpa flash, causal, no image block": flash} if whole else {}),
        bytes=2 * H * (dtype.itemsize * K * T + row * sum(end for _, end in spans)),
        flops=4 * H * K * pairs,
        bar=("sdpa flash, causal, no image block", 0.9) if shape == "775" else None,
    )


@cache
def _flex(span: tuple[int, int], device: str) -> tuple[Any, Any]:
    """Compiled flex attention, and the mask of one sequence, which is the same for all."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    start, end = span
    count = end - start

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query + start) | (key < IMAGE)

    return torch.compile(flex_attention), create_block_mask(sees, None, None, count, end, device=device)


def _epilogue(T: int, stored: torch.dtype, dtype: torch.dtype = torch.bfloat16) -> Case:
    X, size = 3 * H * K, dtype.itemsize
    count, exact = -(-T // L) + 1, dtype == torch.float32
    name = {torch.bfloat16: "bf16", FP8: "fp8"}.get(stored, str(stored).removeprefix("torch."))

    def inputs(device: torch.device) -> Inputs:
        at = torch.arange(T)
        places = TokenPlaces(
            log=torch.log(at.float() + 1).to(device),
            rope=randn(T, 2, K // 4, device=device, dtype=torch.float32),
            page=(at // L).to(device),
            slot=(at % L).to(device),
        )
        tau = randn(2 * H, X, device=device, dtype=dtype, scale=X**-0.5), randn(H, device=device, dtype=torch.float32)
        return randn(T, X, device=device, dtype=dtype), *tau, places, _cache(count, stored, device)

    def seen(q: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
        """What the call leaves behind; of fp8 the numbers, since two nearly equal ones may be rounded apart."""
        k, v = args[-1].pages(list(range(count)))
        return q, k, v

    def twin(z: Any, wqwv: Any, alpha: Any, places: Any, cache: LayerCache) -> tuple[torch.Tensor, ...]:
        return seen(qkv_epilogue_torch(z.float(), wqwv.float(), alpha, places, cache), cache)

    row = K * stored.itemsize + (4 if stored == FP8 else 0)
    return Case(
        op="qkv_epilogue",
        shape=f"{T}-{name}",
        inputs=inputs,
        run=lambda z, wqwv, alpha, places, cache: qkv.qkv_epilogue(z, wqwv, alpha, places, cache, None),
        seen=seen,
        twin=twin,
        bound=_FLOAT32 if exact else 1e-2 if stored == FP8 else 6e-3,
        why=_FLOAT32_WHY if exact else _CACHE_WHY if stored == FP8 else _WHY,
        rivals={},
        bytes=size * T * (X + H * K) + 2 * T * H * row + size * 2 * H * X,
        flops=2 * T * X * 2 * H,
        bar=("bytes", 0.8) if T > 512 and not exact else None,
    )


def _copy(count: int, stored: torch.dtype) -> Case:
    layers, total = 24, 64

    def inputs(device: torch.device) -> Inputs:
        if device.type == "meta":
            whole = torch.empty(layers, total, H, L, K, dtype=stored, device=device)
        else:
            whole = randn(layers, total, H, L, K, device=device).to(stored)
        source, into = torch.arange(count), torch.arange(count) + 32
        return whole, source.to(device), into.to(device)

    def run(whole: torch.Tensor, source: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        pages.copy_pages(whole, source, into)
        return whole

    def twin(whole: torch.Tensor, source: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        copy_pages_torch(whole, source, into)
        return whole

    return Case(
        op="copy_pages",
        shape=f"{count}-{'fp8' if stored == FP8 else 'bf16'}",
        inputs=inputs,
        run=run,
        twin=twin,
        bound=0.0,
        why="copies are exact",
        bytes=2 * count * layers * H * L * K * stored.itemsize,
    )
