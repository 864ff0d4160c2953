"""Paged attention written as plain loops in float64, over scattered pages in a cache of NaN; for every body of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mdinfer.kernels import AttentionBatch, LayerCache
from tests.kernels.compare import Array, randn, rms_ratio, to_array

Body = Callable[[torch.Tensor, LayerCache, AttentionBatch], torch.Tensor]
FP8 = torch.float8_e4m3fn
H = 2


@dataclass(frozen=True)
class Queries:
    """One sequence: the keys that each of its queries sees."""

    visible: tuple[int, ...]

    @property
    def length(self) -> int:
        return max(self.visible)


def causal(start: int, end: int) -> Queries:
    """Queries at positions start .. end - 1."""
    return Queries(tuple(range(start + 1, end + 1)))


def prompt(*parts: int, start: int = 0) -> Queries:
    """A prompt of text (positive counts) and image blocks (negative ones), from position `start` on."""
    visible: list[int] = []
    for part in parts:
        at = len(visible)
        visible += [at - part] * -part if part < 0 else range(at + 1, at + part + 1)
    return Queries(tuple(visible[start:]))


def twin(q: Array, k: Array, v: Array, sequences: Sequence[Queries], pages: list[list[int]]) -> Array:
    out, row, slots = np.empty_like(q), 0, k.shape[2]
    for sequence, mine in zip(sequences, pages, strict=True):
        for seen in sequence.visible:
            for h in range(q.shape[1]):
                keys = np.stack([k[mine[j // slots], h, j % slots] for j in range(seen)])
                values = np.stack([v[mine[j // slots], h, j % slots] for j in range(seen)])
                scores = keys @ q[row, h] / q.shape[2] ** 0.5
                weights = np.exp(scores - scores.max())
                out[row, h] = weights @ values / weights.sum()
            row += 1
    return out


def cache(pages: int, slots: int, K: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
    """Keys and values of NaN, in a number type or in fp8 with scales of NaN."""
    shape = (pages, H, slots, K)
    if dtype != FP8:
        return LayerCache(**{name: torch.full(shape, float("nan"), dtype=dtype, device=device) for name in "kv"})
    k, v = (torch.full(shape, 0x7F, dtype=torch.uint8, device=device).view(FP8) for _ in "kv")
    k_scale, v_scale = (torch.full(shape[:3], float("nan"), device=device) for _ in "kv")
    return LayerCache(k=k, v=v, k_scale=k_scale, v_scale=v_scale)


def numbers(stored: torch.Tensor, scale: torch.Tensor | None) -> Array:
    """What a cache's tensor means."""
    return to_array(stored.float()) * (1.0 if scale is None else to_array(scale)[..., None])


def run(
    body: Body,
    sequences: Sequence[Queries],
    *,
    slots: int = 16,
    K: int = 16,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
    scattered: bool = True,
    empty: int = 0,
    device: torch.device | None = None,
) -> float:
    """RMS error ratio; slots that no sequence has filled, and whole pages, stay NaN.

    stored: the cache's type, where it is another than q's. empty: rows that stand for nothing at the end, as in a
    padded batch; they must come out as zeros.
    """
    device = device or torch.device("cpu")
    counts = [-(-s.length // slots) for s in sequences]
    total = sum(counts) + 3
    order = torch.randperm(total, generator=torch.Generator().manual_seed(7)).tolist()
    order = order if scattered else list(range(total))
    pages = [[order.pop() if scattered else order.pop(0) for _ in range(count)] for count in counts]
    T = sum(len(s.visible) for s in sequences)
    q = randn(T + empty, H, K, seed=1).to(device, dtype)
    filled = cache(total, slots, K, stored or dtype, device)
    for i, (sequence, mine) in enumerate(zip(sequences, pages, strict=True)):
        at = torch.arange(sequence.length)
        page, slot = torch.tensor(mine)[at // slots].to(device), (at % slots).to(device)
        k, v = randn(len(at), H, K, seed=2 * i + 100, scale=1.5), randn(len(at), H, K, seed=2 * i + 101)
        filled.write(page, slot, k.to(device), v.to(device))
    most = max(counts, default=0)
    table = torch.full((len(pages) + empty, most + 2), 10**6, dtype=torch.int32)  # entries nobody may read
    for row, mine in zip(table, pages, strict=False):
        row[: len(mine)] = torch.tensor(mine)
    queries = tuple(len(s.visible) for s in sequences) + (1,) * empty
    visible = [n for s in sequences for n in s.visible] + [0] * empty
    batch = AttentionBatch(
        starts=torch.tensor(np.cumsum((0, *queries)), dtype=torch.int32, device=device),
        pages=table.to(device),
        visible=torch.tensor(visible, dtype=torch.int32, device=device),
        queries=queries,
    )
    found = body(q, filled, batch)
    assert found.dtype == dtype and found.shape == q.shape
    assert not found[T:].any()
    keys, values = numbers(filled.k, filled.k_scale), numbers(filled.v, filled.v_scale)
    return rms_ratio(found[:T], twin(to_array(q[:T]), keys, values, sequences, pages)) if T else 0.0
